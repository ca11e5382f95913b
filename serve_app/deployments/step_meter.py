"""How long steps take, and how much of the stages' time has none."""

import time
from collections import deque
from collections.abc import Callable

from serve_app.deployments.stage_times import StageTimes
from serve_app.metrics.families import STEPS
from serve_app.metrics.times import Times


class StepMeter:
    """Of one copy, over all epochs of its shards; a few clock readings for each step.

    While any step is in flight, as many stages have one to run as there are steps, the others none: a step is in one
    stage at a time. How long a stage takes for its step is not seen from here: `stages` has what shards tell.
    """

    def __init__(self, num_stages: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.times = Times(STEPS.bounds_s)
        self.stages = StageTimes()
        self.busy_s = 0.0  # over all stages
        self.idle_s = 0.0
        self._num_stages = num_stages
        self._clock = clock
        self._sent_s: deque[float] = deque()  # of the steps in flight, in their order
        self._counted_s = 0.0  # up to when time is counted

    def send(self) -> None:
        """A step goes to the shards."""
        self._sent_s.append(self._count())

    def end(self) -> None:
        """The output of the oldest step is there."""
        now_s = self._count()
        self.times.add(now_s - self._sent_s.popleft())

    def lose(self) -> None:
        """The shards are gone, and the steps in flight with them."""
        self._sent_s.clear()

    def _count(self) -> float:
        """Count the time since the last change; gives the time now."""
        now_s = self._clock()
        if self._sent_s:
            elapsed_s = now_s - self._counted_s
            num_busy = min(len(self._sent_s), self._num_stages)
            self.busy_s += elapsed_s * num_busy
            self.idle_s += elapsed_s * (self._num_stages - num_busy)
        self._counted_s = now_s
        return now_s
