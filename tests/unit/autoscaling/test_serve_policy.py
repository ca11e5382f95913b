"""The policy in Serve's own hands: pickled, put between Serve's bounds and delays, asked with Serve's context."""

from typing import Any

import pytest
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve._private.config import DeploymentConfig
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingContext

from serve_app.app import build_model
from serve_app.autoscaling.policy import CopyReading
from serve_app.autoscaling.serve_policy import metrics_of
from serve_app.config.model import ModelConfig

pytestmark = pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")

DEPLOYMENT = DeploymentID("Router", "m")
REPLICAS = [ReplicaID(str(number), DEPLOYMENT) for number in range(3)]


class Controller:
    """What Serve's controller keeps of one deployment."""

    def __init__(self, **autoscaling: Any) -> None:
        args = {"name": "m", "source": "examples/demo_model/model", "autoscaling": autoscaling}
        deployed = build_model(ModelConfig.model_validate(args))._bound_deployment._deployment_config
        config = DeploymentConfig.from_proto_bytes(deployed.to_proto_bytes()).autoscaling_config
        assert config is not None
        self.config = config
        self._policy = _apply_autoscaling_config(_resolve_policy_callable(config.policy))
        self._state: dict[str, Any] = {}

    def decide(
        self,
        target: int,
        readings: dict[ReplicaID, CopyReading],
        *,
        num_silent: int = 0,
        requests: float = 0.0,
        now_s: float = 100.0,
    ) -> int:
        """One decision. num_silent: replicas that run and have told nothing."""
        told = {replica: metrics_of(reading) for replica, reading in readings.items()}
        names = {name for metrics in told.values() for name in metrics}
        raw = {
            name: {
                replica: [TimeStampedValue(now_s - 1, -1.0), TimeStampedValue(now_s, metrics[name])]
                for replica, metrics in told.items()
                if name in metrics
            }
            for name in names
        }
        context = AutoscalingContext(
            deployment_id=DEPLOYMENT,
            deployment_name="Router",
            app_name="m",
            current_num_replicas=len(readings) + num_silent,
            target_num_replicas=target,
            running_replicas=list(readings),
            total_num_requests=lambda: requests,
            total_queued_requests=lambda: 0.0,
            aggregated_metrics=lambda: {},
            raw_metrics=lambda: raw,
            capacity_adjusted_min_replicas=self.config.min_replicas,
            capacity_adjusted_max_replicas=self.config.max_replicas,
            policy_state=dict(self._state),
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now_s,
            config=self.config,
        )
        num_replicas, self._state = self._policy(context)
        return int(num_replicas)


def test_serve_gets_the_sections_bounds_and_adds_no_delay_of_its_own() -> None:
    config = Controller(min_replicas=0, max_replicas=7).config
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (0, 1, 7)
    assert (config.upscale_delay_s, config.downscale_delay_s, config.downscale_to_zero_delay_s) == (0, 0, 0)


def test_the_newest_samples_of_all_replicas_decide() -> None:
    controller = Controller(max_replicas=9, target_ttft_s=1.0)
    late = CopyReading(30.0, 0.9, 1.0, startup_s=60.0)
    assert controller.decide(3, dict.fromkeys(REPLICAS, CopyReading(0.0, 0.5, 0.5)), requests=9) == 3
    assert controller.decide(3, dict.fromkeys(REPLICAS, late), requests=99, now_s=101.0) > 3


def test_what_the_policy_remembers_is_kept_by_serve() -> None:
    controller = Controller(max_replicas=9, downscale_delay_s=20.0)
    idle = dict.fromkeys(REPLICAS, CopyReading(0.0))
    decisions = [controller.decide(3, idle, now_s=100.0 + second) for second in range(22)]
    assert decisions[:20] == [3] * 20
    assert decisions[20] == 2


def test_a_model_goes_to_sleep_and_is_woken_through_serve() -> None:
    controller = Controller(min_replicas=0, max_replicas=2, idle_delay_s=5.0)
    one = {REPLICAS[0]: CopyReading(0.0)}
    assert controller.decide(1, one, requests=1.0, now_s=100.0) == 1
    assert controller.decide(1, one, now_s=104.0) == 1
    assert controller.decide(1, one, now_s=105.0) == 0
    assert controller.decide(0, {}, now_s=106.0) == 0
    assert controller.decide(0, {}, requests=1.0, now_s=107.0) == 1
    assert controller.decide(1, {}, requests=1.0, now_s=108.0) == 1, "it is starting"


def test_a_replica_that_has_told_nothing_of_late_stops_a_step_down_only() -> None:
    controller = Controller(max_replicas=9, downscale_delay_s=0.0)
    idle = dict.fromkeys(REPLICAS, CopyReading(0.0))
    assert controller.decide(3, idle, now_s=100.0) == 2
    silent = Controller(max_replicas=9, downscale_delay_s=0.0)
    assert silent.decide(4, idle, num_silent=1, now_s=100.0) == 4, "one of four is not known"
