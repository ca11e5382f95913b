"""The policy as Serve's controller calls it, every tenth of a second, for a deployment of Routers.

Ray is not imported: what Serve hands in is named by its parts. Serve makes one instance for each deployment, with the
keywords that planning/autoscaling_options.py gives it, and keeps the state.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from serve_app.autoscaling.policy import CopyReading, PolicySettings, PolicyState, Snapshot, decide

_FRESH_S = 15.0  # a copy that has told nothing for that long counts as one that has not told anything yet
_STATE_KEY = "rayshard"


class TimedValue(Protocol):
    """One of Serve's samples."""

    timestamp: float
    value: float


class ScalingContext(Protocol):
    """Serve's AutoscalingContext, as far as it is read."""

    current_time: float | None
    target_num_replicas: int
    current_num_replicas: int
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    policy_state: dict[str, Any]

    @property
    def total_num_requests(self) -> float:
        """Calls that are open: one for each that is under way, as the callers hold them."""
        ...

    @property
    def raw_metrics(self) -> Mapping[str, Mapping[Hashable, Sequence[TimedValue]]] | None:
        """Samples of what running replicas tell: by metric, then by replica."""
        ...


class QueueDelayPolicy:
    """Replicas follow queue delay, KV in use and tokens/s."""

    def __init__(self, **settings: Any) -> None:
        self._settings = PolicySettings(**settings)

    def __call__(self, context: ScalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas to have, and the state for the next call."""
        now_s = context.current_time or 0.0
        seen = Snapshot(
            now_s=now_s,
            num_target=context.target_num_replicas,
            num_running=context.current_num_replicas,
            readings=_readings(context.raw_metrics or {}, now_s),
            num_requests=context.total_num_requests,
            min_replicas=context.capacity_adjusted_min_replicas,
            max_replicas=context.capacity_adjusted_max_replicas,
        )
        state = PolicyState(**context.policy_state.get(_STATE_KEY, {}))
        num_target, state = decide(self._settings, seen, state)
        return num_target, {_STATE_KEY: asdict(state)}


def metrics_of(reading: CopyReading) -> dict[str, float]:
    """What a replica tells Serve."""
    return {name: value for name, value in asdict(reading).items() if value is not None}


def _readings(metrics: Mapping[str, Mapping[Hashable, Sequence[TimedValue]]], now_s: float) -> list[CopyReading]:
    """The newest of each replica that has told its load of late."""
    found: list[CopyReading] = []
    for replica, series in metrics.get("queue_delay_s", {}).items():
        if not series or now_s - series[-1].timestamp > _FRESH_S:
            continue
        newest = {name: by_replica[replica] for name, by_replica in metrics.items() if by_replica.get(replica)}
        fields = {name: series[-1].value for name, series in newest.items() if name in CopyReading.__dataclass_fields__}
        found.append(CopyReading(**fields))
    return found
