"""The application builders that `serve_config.yaml` names: the only place that binds deployments.

Serve validates an application's `args` against a builder's annotation only when that is a class, not a string:
no postponed annotations here.
"""

from pathlib import Path

from ray import serve
from ray.serve import Application

from serve_app.config import GatewayConfig, ModelConfig, read_environment
from serve_app.deployments.router import Router
from serve_app.gateway.deployment import ROUTER_NAME, Gateway
from serve_app.planning.source import is_hub_id, pin_revision

_GATEWAY_MAX_ONGOING_REQUESTS = 10_000
_CPUS_PER_REPLICA = 0.1  # reserved, not a limit: Gateway, Router and four shards fit on two cores
_SHUTDOWN_S = 600.0  # a replica that is to leave lets its requests end


def build_gateway(args: GatewayConfig) -> Application:
    """The Gateway's application."""
    deployment = serve.deployment(
        serve.ingress()(Gateway),
        name="Gateway",
        max_ongoing_requests=_GATEWAY_MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
        ray_actor_options={"num_cpus": _CPUS_PER_REPLICA},
    )
    return deployment.bind(args)


def build_model(args: ModelConfig) -> Application:
    """One model's application: a Router whose placement group holds its shards."""
    num_shards = args.parallel.pipeline * args.parallel.tensor
    deployment = serve.deployment(
        Router,
        name=ROUTER_NAME,
        max_ongoing_requests=2 * args.max_ongoing_requests,  # above what the scheduler takes: it refuses, Serve waits
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
        health_check_period_s=5.0,
        health_check_timeout_s=30.0,
        ray_actor_options={"num_cpus": _CPUS_PER_REPLICA},
        placement_group_bundles=[{"CPU": _CPUS_PER_REPLICA}, *([_shard_bundle(args)] * num_shards)],
        placement_group_strategy="PACK",
    )
    return deployment.bind(_with_pinned_source(args))


def _with_pinned_source(config: ModelConfig) -> ModelConfig:
    """Resolved once for all replicas: a relative directory (they run elsewhere), a hub id's commit (it may move)."""
    directory = Path(config.source).expanduser()
    if directory.is_dir():
        return config.model_copy(update={"source": str(directory.resolve())})
    if is_hub_id(config.source, Path.cwd()):
        return config.model_copy(update={"revision": pin_revision(config.source, config.revision, read_environment())})
    return config


def _shard_bundle(config: ModelConfig) -> dict[str, float]:
    bundle = {"CPU": config.device.cpus_per_shard}
    if config.device.type == "cuda":
        bundle["GPU"] = config.device.gpus_per_shard
        if config.device.accelerator_type is not None:
            bundle[f"accelerator_type:{config.device.accelerator_type}"] = 0.001
    return bundle
