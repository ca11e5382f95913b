"""How many streams may stay open that cost nothing while nothing is asked of them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import QueueFullError

_MAX_OF_CALLER = 32
_MAX_IN_ALL = 256


class OpenStreams:
    """Counts the open streams of one kind in this replica."""

    def __init__(self, *, max_of_caller: int = _MAX_OF_CALLER, max_in_all: int = _MAX_IN_ALL) -> None:
        self._max_of_caller = max_of_caller
        self._max_in_all = max_in_all
        self._num_open: Counter[str] = Counter()

    @contextmanager
    def held(self, caller: str) -> Iterator[None]:
        """While a stream of the caller's is open. Raises QueueFullError."""
        if self._num_open[caller] >= self._max_of_caller:
            message = f"{self._max_of_caller} streams of yours are open, as many as may be; end one of them"
            raise QueueFullError(message, retry_after_s=1.0)
        if self._num_open.total() >= self._max_in_all:
            raise QueueFullError(f"{self._max_in_all} streams are open, as many as may be; try again later")
        self._num_open[caller] += 1
        try:
            yield
        finally:
            self._num_open[caller] -= 1
            if not self._num_open[caller]:
                del self._num_open[caller]
