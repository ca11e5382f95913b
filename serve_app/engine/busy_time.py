"""How long a shard has computed, told at the borders of its steps: the rest of the time it has waited."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import torch


class BusyTime(Protocol):
    """Counts from a step's input to its output. One thread begins and ends, any may read."""

    @property
    def seconds(self) -> float:
        """Of all steps so far."""
        ...

    def begin(self) -> None:
        """A step's input is there. Again, when the step before has failed."""
        ...

    def end(self) -> None:
        """The step's output is."""
        ...

    def watch(self, tell: Callable[[float], None]) -> None:
        """Tell the seconds of the step that begins next, once they are known; by the thread that begins and ends."""
        ...


class HostBusyTime:
    """BusyTime of steps that the host computes or waits for; of the step at hand what has passed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended_s = 0.0
        self._began: float | None = None
        self._tell: Callable[[float], None] | None = None

    @property
    def seconds(self) -> float:
        """See BusyTime."""
        ended_s, began = self._ended_s, self._began
        return ended_s if began is None else ended_s + self._clock() - began

    def begin(self) -> None:
        """See BusyTime."""
        self._began = self._clock()

    def end(self) -> None:
        """See BusyTime."""
        began, self._began = self._began, None
        if began is None:
            return
        step_s = self._clock() - began
        self._ended_s += step_s
        if self._tell is not None:
            tell, self._tell = self._tell, None
            tell(step_s)

    def watch(self, tell: Callable[[float], None]) -> None:
        """See BusyTime."""
        self._tell = tell


class TimedEvent(Protocol):
    """A point in the device's work, and when it came to it."""

    def record(self) -> None:
        """Put it behind all that has been asked of the device."""
        ...

    def query(self) -> bool:
        """Whether the device has come to it."""
        ...

    def elapsed_time(self, later: Any, /) -> float:
        """Milliseconds from this one to a later one, both of which the device has come to."""
        ...


class DeviceBusyTime:
    """BusyTime of steps that a device computes after the host has launched them; of those that have ended."""

    def __init__(self, make_event: Callable[[], TimedEvent]) -> None:
        self._make_event = make_event
        self._ended_s = 0.0
        self._began: TimedEvent | None = None
        self._running: deque[tuple[TimedEvent, TimedEvent, Callable[[float], None] | None]] = deque()
        self._tell: Callable[[float], None] | None = None

    @property
    def seconds(self) -> float:
        """See BusyTime."""
        return self._ended_s

    def begin(self) -> None:
        """See BusyTime."""
        while self._running and self._running[0][1].query():
            began, ended, tell = self._running.popleft()
            step_s = began.elapsed_time(ended) / 1000
            self._ended_s += step_s
            if tell is not None:
                tell(step_s)
        self._began = self._make_event()
        self._began.record()

    def end(self) -> None:
        """See BusyTime."""
        if self._began is not None:
            ended = self._make_event()
            ended.record()
            self._running.append((self._began, ended, self._tell))
            self._began = self._tell = None

    def watch(self, tell: Callable[[float], None]) -> None:
        """See BusyTime; known when a later step begins."""
        self._tell = tell


def busy_time_of(device: torch.device) -> BusyTime:
    """That of a device that steps are launched on, or of the host that computes them."""
    if device.type != "cuda":
        return HostBusyTime()
    return DeviceBusyTime(lambda: torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
