"""What share of a copy's working time its stages wait: the bubble of its pipeline."""

from collections import deque
from collections.abc import Sequence

_WINDOW_S = 10.0  # in which steps were in flight, however long ago that was
_MIN_S = 0.5  # of it, before a share means anything


class BubbleMeter:
    """Of one copy, over all epochs: steps in flight by the Router's clock, beside how long shards say they compute.

    stages: of each shard.
    """

    def __init__(self, stages: Sequence[int], clock_s: float) -> None:
        self.busy_s = 0.0  # over all stages; of ranks the mean
        self.idle_s = 0.0  # over all stages: while the copy worked
        self._num_ranks = max(1, sum(stage == stages[0] for stage in stages))
        self._worked_s = 0.0
        self._at_s = clock_s
        self._is_working = False
        self._samples: list[deque[tuple[float, float]]] = [deque() for _ in stages]  # worked, busy

    def note(self, clock_s: float, *, is_working: bool) -> None:
        """Whether any step is in flight from now on."""
        if self._is_working:
            self._worked_s += clock_s - self._at_s
        self._at_s, self._is_working = clock_s, is_working

    def hear(self, shard: int, busy_s: float, clock_s: float) -> None:
        """A shard has computed for so long since it began."""
        self.note(clock_s, is_working=self._is_working)
        samples = self._samples[shard]
        if samples:
            self._count(self._worked_s - samples[-1][0], busy_s - samples[-1][1])
        if samples and samples[-1][0] == self._worked_s:  # idle since
            samples.pop()
        samples.append((self._worked_s, busy_s))
        while len(samples) > 2 and samples[1][0] <= self._worked_s - _WINDOW_S:
            samples.popleft()

    def lose(self, clock_s: float) -> None:
        """The shards are gone, and the steps in flight; those of the next epoch begin to count anew."""
        self.note(clock_s, is_working=False)
        for samples in self._samples:
            samples.clear()

    def shares(self) -> list[float | None]:
        """By shard: the share of the window in which it has waited; None: it has hardly worked, or does not say."""
        return [_share(samples) for samples in self._samples]

    def _count(self, worked_s: float, busy_s: float) -> None:
        self.busy_s += busy_s / self._num_ranks
        self.idle_s += max(0.0, worked_s - busy_s) / self._num_ranks


def _share(samples: Sequence[tuple[float, float]]) -> float | None:
    if len(samples) < 2:
        return None
    (first_worked_s, first_busy_s), (worked_s, busy_s) = samples[0], samples[-1]
    if worked_s - first_worked_s < _MIN_S:
        return None
    return min(1.0, max(0.0, 1.0 - (busy_s - first_busy_s) / (worked_s - first_worked_s)))


def stage_bubbles(shares: Sequence[float | None], stages: Sequence[int]) -> list[float | None]:
    """The mean of each stage's ranks; shares and stages by shard."""
    return [
        mean_share([share for share, of in zip(shares, stages, strict=True) if of == stage])
        for stage in (sorted(set(stages)) if shares else [])
    ]


def mean_share(shares: Sequence[float | None]) -> float | None:
    """Their mean; None as long as one is not known."""
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known and len(known) == len(shares) else None
