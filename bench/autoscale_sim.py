"""A day's traffic on 1,000 GPUs: what our autoscaling policy costs and misses, against Serve's own.

    python -m bench.autoscale_sim

Both policies are the code that a cluster runs: ours is `serve_app.autoscaling.policy`, Serve's is Ray's default policy
with the delays that Serve puts around it. Their clock is the simulation's. Copies are simulated (autoscale_cluster.py).
"""

import argparse
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol
from unittest.mock import patch

import numpy as np
from ray.serve import autoscaling_policy
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from bench.autoscale_cluster import Cluster, CopySpec, Outcome
from serve_app.autoscaling.policy import CopyReading, PolicySettings, PolicyState, Snapshot, decide

DAY_S = 86_400
NUM_GPUS = 1000
TARGET_TTFT_S = 2.0
MIN_REPLICAS = 2
SERVE_TARGETS = (2, 24, 32, 40)  # ongoing requests for each copy; 2 is Serve's default
_PEAK_PER_S = 1000.0
_DECISION_S = 5  # between two decisions: what a controller hears is some seconds old


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests per second over a run."""

    name: str
    rate: Callable[[float], float]  # of the share of the run that has passed


def _wave(share: float) -> float:
    return _PEAK_PER_S * (0.1 + 0.9 * math.pow(0.5 - 0.5 * math.cos(2 * math.pi * share), 1.5))


def _burst(share: float) -> float:
    """Twelve times a day, for a twelfth of the time between, three times as much from one second to the next."""
    return _PEAK_PER_S * (0.75 if (share * 12) % 1 < 1 / 12 else 0.25)


def _steps(share: float) -> float:
    levels = (0.2, 0.5, 0.3, 0.9, 0.6, 1.0, 0.4, 0.1)
    return _PEAK_PER_S * levels[min(len(levels) - 1, int(share * len(levels)))]


TRAFFICS = (Traffic("daily wave", _wave), Traffic("bursts", _burst), Traffic("steps", _steps))


class Scaler(Protocol):
    """A policy."""

    def target(self, cluster: Cluster, now_s: float, max_replicas: int) -> int:
        """Copies to have."""
        ...


class OurScaler:
    """serve_app.autoscaling.policy over what the copies would tell."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._state = PolicyState()

    def target(self, cluster: Cluster, now_s: float, max_replicas: int) -> int:
        """See Scaler."""
        readings = [
            CopyReading(float(delay_s), float(kv), float(capacity), cluster.spec.startup_s)
            for delay_s, kv, capacity in zip(
                cluster.queue_delays_s(), cluster.kv_usages(), cluster.capacity_usages(), strict=True
            )
        ]
        snapshot = Snapshot(
            now_s, cluster.num_target, cluster.num_running, readings, cluster.num_requests, MIN_REPLICAS, max_replicas
        )
        num_target, self._state = decide(self._settings, snapshot, self._state)
        return num_target


class ServeScaler:
    """Serve's default policy: requests for each copy, averaged over its look-back period."""

    def __init__(self, target_ongoing_requests: float, max_replicas: int) -> None:
        self._config = AutoscalingConfig(
            min_replicas=MIN_REPLICAS, max_replicas=max_replicas, target_ongoing_requests=target_ongoing_requests
        )
        default = autoscaling_policy.replica_queue_length_autoscaling_policy
        self._policy = autoscaling_policy._apply_autoscaling_config(default)
        self._state: dict[str, Any] = {}
        self._seen: deque[float] = deque(maxlen=int(self._config.look_back_period_s) // _DECISION_S)

    def target(self, cluster: Cluster, now_s: float, max_replicas: int) -> int:
        """See Scaler."""
        self._seen.append(cluster.num_requests)
        context = AutoscalingContext(
            deployment_id=DeploymentID("Router", "sim"),
            deployment_name="Router",
            app_name="sim",
            current_num_replicas=cluster.num_running,
            target_num_replicas=cluster.num_target,
            running_replicas=[],
            total_num_requests=sum(self._seen) / len(self._seen),
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=MIN_REPLICAS,
            capacity_adjusted_max_replicas=max_replicas,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now_s,
            config=self._config,
        )
        wanted, self._state = self._policy(context)
        return max(MIN_REPLICAS, min(max_replicas, int(wanted)))


def simulate(
    scaler: Scaler, traffic: Traffic, spec: CopySpec, *, num_gpus: int = NUM_GPUS, length_s: int = DAY_S, seed: int = 0
) -> Outcome:
    """Run a policy through a traffic, from as many copies as its first second needs."""
    max_replicas = num_gpus // spec.num_gpus
    share = num_gpus / NUM_GPUS  # of the traffic
    first = math.ceil(traffic.rate(0.0) * share / spec.requests_per_s / 0.8)
    cluster = Cluster(spec, max(MIN_REPLICAS, first), TARGET_TTFT_S)
    random = np.random.default_rng(seed)
    clock = SimpleNamespace(now_s=0.0)
    with _serve_clock(clock):
        for second in range(length_s):
            clock.now_s = float(second)
            rate = traffic.rate(second / length_s) * share
            cluster.run_second(float(random.poisson(rate)), clock.now_s)
            if second % _DECISION_S == 0:
                cluster.scale(scaler.target(cluster, clock.now_s, max_replicas), clock.now_s)
    return cluster.outcome


@contextmanager
def _serve_clock(clock: SimpleNamespace) -> Iterator[None]:
    """Serve's policy reads the time itself: let it read the simulation's."""
    with patch.object(autoscaling_policy, "time", SimpleNamespace(time=lambda: clock.now_s)):
        yield


def scalers(max_replicas: int, targets: Sequence[int] = SERVE_TARGETS) -> list[tuple[str, Callable[[], Scaler]]]:
    """All policies that are compared, by their names."""
    ours = PolicySettings(target_ttft_s=TARGET_TTFT_S)
    found: list[tuple[str, Callable[[], Scaler]]] = [("rayshard", partial(OurScaler, ours))]
    for target in targets:
        name = f"Serve, {target} requests a copy" + (" (its default)" if target == 2 else "")
        found.append((name, partial(ServeScaler, target, max_replicas)))
    return found


def main() -> None:
    """Print a table for each traffic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--startup-s", type=float, default=120.0, help="how long the start of a copy takes")
    parser.add_argument("--length-s", type=int, default=DAY_S, help="how long a run is; its shape is stretched to it")
    parser.add_argument("--traffic", choices=[one.name for one in TRAFFICS], help="one of them only")
    options = parser.parse_args()
    spec = CopySpec(startup_s=options.startup_s)
    print(f"{NUM_GPUS} GPUs, copies of {spec.num_gpus}, {options.startup_s:g} s to start one, {options.length_s} s.")
    print("\n| traffic | policy | GPU hours | first token later than 2 s |\n| --- | --- | --- | --- |")
    for traffic in TRAFFICS:
        if options.traffic not in (None, traffic.name):
            continue
        for name, make in scalers(NUM_GPUS // spec.num_gpus):
            outcome = simulate(make(), traffic, spec, length_s=options.length_s)
            print(f"| {traffic.name} | {name} | {outcome.gpu_s / 3600:.0f} | {outcome.miss_share:.2%} |", flush=True)


if __name__ == "__main__":
    main()
