"""How many copies a model should have: up at once on what users feel, down slowly on what running work needs.

All is counted in copies. Running work is worth as many copies as would hold it at the targets. A queue is worth the
copies that its growth asks for, and those that would work it off soon. No clock of its own, no
Serve: the same code runs in Serve's controller and in `bench/autoscale_sim.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

_HYSTERESIS = 0.9  # of the targets: what running work may come to on the copies that a step down leaves
_GROWTH_S = 15.0  # over which the growth of the queues is smoothed
_DRAIN_SHARE = 0.25  # of a start's time, in which copies that are added should work a queue off
_MIN_DRAIN_S = 30.0  # and not less than that
_MIN_STEP_UP = 4  # copies that may be added at once, however few run
DEFAULT_STARTUP_S = 120.0  # where no copy has told how long its start took


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """A model's `autoscaling` section, as far as it does not bound the number of copies."""

    target_ttft_s: float
    queue_share: float = 0.5  # of target_ttft_s that a request may wait for its turn
    kv_usage: float = 0.8  # of the KV cache, in use
    capacity_usage: float = 0.8  # of the tokens/s that a copy can do, and of its sequences
    upscale_step: float = 2.0  # copies that may start at once, for each one that runs
    downscale_step: float = 0.25  # share of the copies that may go at once
    downscale_delay_s: float = 300.0
    idle_delay_s: float = 600.0  # without a request, before the last copy goes
    startup_s: float | None = None  # None: as the copies have told


@dataclass(frozen=True, slots=True)
class CopyReading:
    """What one copy tells. Shares may be above 1."""

    queue_delay_s: float  # of a newcomer behind all that waits
    kv_usage: float = 0.0  # share of the KV cache that sequences hold
    capacity_usage: float = 0.0  # share of its tokens/s or of its sequences, whichever is more
    startup_s: float | None = None  # how long its start took


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model's copies at one moment."""

    now_s: float
    num_target: int  # copies that were asked for: those that are starting count
    num_running: int
    readings: Sequence[CopyReading]  # of running copies; one that has just started may have told nothing yet
    num_requests: float  # that run or wait anywhere
    min_replicas: int
    max_replicas: int


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What is kept from one decision to the next."""

    seen_s: float | None = None
    backlog_s: float = 0.0  # copy-seconds of waiting work
    growth: float = 0.0  # copies that would stop the queues' growth
    low_since_s: float | None = None  # fewer copies would have done ever since
    low_peak: int = 0  # the most that were needed since then
    busy_s: float | None = None  # when there was a request, or a start, last


def decide(settings: PolicySettings, seen: Snapshot, state: PolicyState) -> tuple[int, PolicyState]:
    """The number of copies to have, within the bounds, and what to remember."""
    state = _with_growth(seen, state)
    wanted = _clamped(math.ceil(_needed(settings, seen, state)), seen)
    is_starting = seen.num_running < seen.num_target
    if seen.num_requests > 0 or is_starting or state.busy_s is None or state.busy_s > seen.now_s:
        state = replace(state, busy_s=seen.now_s)
    if wanted > seen.num_target:
        most = seen.num_running + max(_MIN_STEP_UP, math.floor(seen.num_running * settings.upscale_step))
        num_target = max(seen.num_target, min(wanted, most))
        return num_target, replace(state, low_since_s=None, low_peak=0)
    return _step_down(settings, seen, state)


def _needed(settings: PolicySettings, seen: Snapshot, state: PolicyState) -> float:
    """Copies for the running work, for the queues' growth, and to work off what waits too long."""
    if not seen.readings:
        return 1.0 if seen.num_requests > 0 else 0.0
    work = _work(settings, seen)
    delay_s = sum(one.queue_delay_s for one in seen.readings) / len(seen.readings)
    late_s = delay_s - settings.queue_share * settings.target_ttft_s
    if late_s <= 0:
        return work
    drain_s = max(_MIN_DRAIN_S, _DRAIN_SHARE * _startup_s(settings, seen))
    return max(work, len(seen.readings)) + state.growth + late_s * len(seen.readings) / drain_s


def _work(settings: PolicySettings, seen: Snapshot) -> float:
    """Copies that would hold all running work at the targets."""
    return sum(
        max(one.kv_usage / settings.kv_usage, one.capacity_usage / settings.capacity_usage) for one in seen.readings
    )


def _with_growth(seen: Snapshot, state: PolicyState) -> PolicyState:
    """How fast waiting work becomes more: a second's growth by one copy-second is the work of one copy."""
    backlog_s = sum(one.queue_delay_s for one in seen.readings)
    passed_s = 0.0 if state.seen_s is None else seen.now_s - state.seen_s
    if state.seen_s is not None and passed_s <= 0:
        return replace(state, seen_s=seen.now_s, backlog_s=backlog_s)
    growth = 0.0
    if passed_s > 0:
        share = 1 - math.exp(-passed_s / _GROWTH_S)
        growth = max(0.0, state.growth + share * ((backlog_s - state.backlog_s) / passed_s - state.growth))
    return replace(state, seen_s=seen.now_s, backlog_s=backlog_s, growth=growth)


def _step_down(settings: PolicySettings, seen: Snapshot, state: PolicyState) -> tuple[int, PolicyState]:
    """Fewer copies when fewer would have done for `downscale_delay_s`, and all that run have told how they are."""
    keep = max(seen.min_replicas, 1, math.ceil(_needed(settings, seen, state) / _HYSTERESIS))
    is_known = seen.num_running == len(seen.readings)
    if seen.num_target <= 1:
        is_idle = seen.num_requests <= 0 and seen.now_s - (state.busy_s or seen.now_s) >= settings.idle_delay_s
        goes = seen.min_replicas == 0 and is_idle and _work(settings, seen) == 0
        return (0 if goes else _clamped(seen.num_target, seen)), replace(state, low_since_s=None, low_peak=0)
    if keep >= seen.num_target or not is_known:
        return _clamped(seen.num_target, seen), replace(state, low_since_s=None, low_peak=0)
    since_s = seen.now_s if state.low_since_s is None else min(state.low_since_s, seen.now_s)
    peak = max(state.low_peak, keep)
    if seen.now_s - since_s < settings.downscale_delay_s:
        return _clamped(seen.num_target, seen), replace(state, low_since_s=since_s, low_peak=peak)
    most = max(1, math.floor(seen.num_target * settings.downscale_step))
    return _clamped(max(peak, seen.num_target - most), seen), replace(state, low_since_s=None, low_peak=0)


def _startup_s(settings: PolicySettings, seen: Snapshot) -> float:
    if settings.startup_s is not None:
        return settings.startup_s
    told = [one.startup_s for one in seen.readings if one.startup_s is not None]
    return sum(told) / len(told) if told else DEFAULT_STARTUP_S


def _clamped(num_replicas: int, seen: Snapshot) -> int:
    return max(seen.min_replicas, min(seen.max_replicas, num_replicas))
