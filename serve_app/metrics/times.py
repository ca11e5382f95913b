"""How often durations fell between bounds: a histogram of plain integers."""

from bisect import bisect_left
from collections.abc import Sequence

from serve_app.types.models import TimeCounts


class Times:
    """Durations that were seen. Not for several threads."""

    __slots__ = ("_bounds_s", "_counts", "sum_s")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        """bounds_s: the upper bounds of all buckets but the last, ascending."""
        self._bounds_s = tuple(bounds_s)
        self._counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """See one."""
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self.sum_s += seconds

    def add_equal(self, seconds: float, count: int) -> None:
        """See several of the same length."""
        self._counts[bisect_left(self._bounds_s, seconds)] += count
        self.sum_s += seconds * count

    @property
    def count(self) -> int:
        """How many were seen."""
        return sum(self._counts)

    def counts(self) -> TimeCounts:
        """As they are now."""
        return TimeCounts(list(self._counts), self.sum_s)
