"""Until when requests are wanted, by the clock of whoever drives a scheduler."""

import math
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """What has a deadline, or none."""

    @property
    def deadline_s(self) -> float | None: ...


TimedT = TypeVar("TimedT", bound=Timed)


class Deadlines(Generic[TimedT]):
    """Those that have a deadline and have not ended."""

    def __init__(self) -> None:
        self._open: dict[TimedT, float] = {}
        self.earliest_s = math.inf  # no deadline is earlier

    def add(self, one: TimedT) -> None:
        """Watch over one, if it has a deadline."""
        if one.deadline_s is not None:
            self._open[one] = one.deadline_s
            self.earliest_s = min(self.earliest_s, one.deadline_s)

    def forget(self, one: TimedT) -> None:
        """It has ended, or never had a deadline."""
        self._open.pop(one, None)

    def take_passed(self, now_s: float) -> list[TimedT]:
        """Those whose time has passed; they are forgotten."""
        if now_s < self.earliest_s:
            return []
        passed = [one for one, deadline_s in self._open.items() if deadline_s <= now_s]
        for one in passed:
            del self._open[one]
        self.earliest_s = min(self._open.values(), default=math.inf)
        return passed
