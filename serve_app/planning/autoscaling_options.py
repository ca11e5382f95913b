"""A model's `autoscaling` section as Serve's own settings."""

from dataclasses import fields

from serve_app.autoscaling.policy import PolicySettings
from serve_app.config.autoscaling import AutoscalingConfig
from serve_app.planning.serve_options import AutoscalingOptions

POLICY_PATH = "serve_app.autoscaling.serve_policy:QueueDelayPolicy"
_METRICS_INTERVAL_S = 1.0  # Serve's 10 s would be most of a first token's target
_LOOK_BACK_S = 5.0


def autoscaling_options(config: AutoscalingConfig) -> AutoscalingOptions:
    """Serve's `autoscaling_config` of the Router. The policy is ours, so that none of Serve's delays is added."""
    names = {one.name for one in fields(PolicySettings)}
    return AutoscalingOptions(
        min_replicas=config.min_replicas,
        initial_replicas=config.num_first_replicas,
        max_replicas=config.max_replicas,
        metrics_interval_s=_METRICS_INTERVAL_S,
        look_back_period_s=_LOOK_BACK_S,
        upscale_delay_s=0.0,
        downscale_delay_s=0.0,
        downscale_to_zero_delay_s=0.0,
        policy={"policy_function": POLICY_PATH, "policy_kwargs": config.model_dump(include=names)},
    )
