"""How a cluster comes back from a fault: when, and what it leaves behind."""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import httpx

from tests.chaos.chats import probe_chat
from tests.chaos.faulty_cluster import FaultyCluster

_NUM_IN_A_ROW = 8
_PROBE_S = 10.0  # a request that takes longer is no success
_POLL_S = 0.2
_IDLE_S = 10.0


@dataclass(frozen=True, slots=True)
class Held:
    """What a cluster keeps that has nothing to do."""

    num_blocks: int
    num_requests: int


class Probe:
    """A caller that asks for short answers, one after the other."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._client = httpx.Client(timeout=_PROBE_S, trust_env=False, verify=False)

    def is_answered(self) -> bool:
        """Whether a request succeeds now."""
        try:
            return self._client.post(self._url, json=probe_chat()).status_code == 200
        except httpx.TransportError:
            return False


class Watch:
    """Looks at a cluster from the fault until the load has ended and all is well."""

    def __init__(
        self, cluster: FaultyCluster, fault_s: float, give_up_s: float, is_load_done: Callable[[], bool]
    ) -> None:
        """Times are of time.monotonic; the methods block, each in a thread of its own."""
        self._cluster = cluster
        self._fault_s = fault_s
        self._give_up_s = give_up_s
        self._is_load_done = is_load_done
        self._is_stopped = threading.Event()

    def stop(self) -> None:
        """Let those who wait go, without a result."""
        self._is_stopped.set()

    def seconds_to_health(self) -> float | None:
        """Seconds after the fault in which eight requests in a row had succeeded and /health was 200, for good."""
        probe = Probe(self._cluster.url)
        return self._seconds_to(lambda: probe.is_answered() and self._cluster.is_healthy(), _NUM_IN_A_ROW)

    def seconds_to_all_copies(self) -> float | None:
        """Seconds after the fault in which as many copies as the layout has were ready, for good."""
        return self._seconds_to(self._cluster.has_all_copies, 1)

    def _seconds_to(self, is_well: Callable[[], bool], num_needed: int) -> float | None:
        steady = Steadiness(num_needed)
        while time.monotonic() < self._give_up_s and not (self._is_load_done() and steady.since_s is not None):
            steady.note(is_well(), time.monotonic())
            is_counting = 0 < steady.num_good < num_needed
            if self._is_stopped.wait(0.0 if is_counting else _POLL_S):
                return None
        return None if steady.since_s is None else steady.since_s - self._fault_s


class Steadiness:
    """Since when all has been well: several good signs in a row, and no bad one later."""

    def __init__(self, num_needed: int) -> None:
        self._num_needed = num_needed
        self.num_good = 0
        self.since_s: float | None = None  # when the last sign that was needed came

    def note(self, is_good: bool, now_s: float) -> None:
        """Take the next sign in."""
        if not is_good:
            self.num_good, self.since_s = 0, None
            return
        self.num_good += 1
        if self.num_good == self._num_needed:
            self.since_s = now_s


def what_is_held(cluster: FaultyCluster) -> Held | None:
    """Blocks and requests of a cluster whose clients have all gone; None when it does not say."""
    held: Held | None = None
    give_up_s = time.monotonic() + _IDLE_S
    while held != Held(0, 0) and time.monotonic() < give_up_s:
        time.sleep(_POLL_S)
        held = _held_now(cluster)
    return held


def processes_left(
    before: Mapping[str, set[int]], now: Mapping[str, set[int]], added: Mapping[str, int], victims: Collection[int]
) -> set[int]:
    """Processes that should have gone: victims, and of each kind as many as are too many, the oldest first."""
    left = {pid for pids in now.values() for pid in pids if pid in victims}
    for kind, pids in now.items():
        num_extra = len(pids) - len(before[kind]) - added.get(kind, 0) - len(left & pids)
        older_first = sorted(pids - left, key=lambda pid, old=before[kind]: (pid not in old, pid))  # type: ignore[misc]
        left |= set(older_first[: max(0, num_extra)])
    return left


def _held_now(cluster: FaultyCluster) -> Held | None:
    try:
        copies = [copy for own in cluster.health()[1]["models"].values() for copy in own]
    except (httpx.TransportError, ValueError, KeyError):
        return None
    return Held(
        num_blocks=sum(copy["num_blocks"] - copy["num_free_blocks"] for copy in copies),
        num_requests=sum(copy["num_running"] + copy["num_waiting"] for copy in copies),
    )
