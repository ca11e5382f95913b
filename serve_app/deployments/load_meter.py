"""A copy's load as the autoscaling policy is told it: shares of what the copy can do."""

import time
from collections import deque
from collections.abc import Callable

from serve_app.autoscaling.policy import CopyReading
from serve_app.deployments.copy_work import Signals

_WINDOW_S = 10.0  # over which tokens/s are measured


class LoadMeter:
    """Measures tokens/s between readings, and learns what a copy can do from times in which something always waited.

    capacity_tokens_per_s: what it can do, where that is known. Read about once a second.
    """

    def __init__(self, capacity_tokens_per_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._given = capacity_tokens_per_s
        self._most_tokens_per_s = 0.0
        self._clock = clock
        self._seen: deque[tuple[float, int, bool]] = deque()  # when, tokens so far, whether anything waited

    @property
    def capacity_tokens_per_s(self) -> float | None:
        """What the copy can do; None: not known yet."""
        return self._given or self._most_tokens_per_s or None

    def read(self, signals: Signals, startup_s: float | None) -> CopyReading:
        """The copy's load now."""
        tokens_per_s = self._take(signals)
        capacity = self.capacity_tokens_per_s
        token_usage = 0.0 if capacity is None else tokens_per_s / capacity
        return CopyReading(signals.queue_delay_s, signals.kv_usage, max(token_usage, signals.slot_usage), startup_s)

    def _take(self, signals: Signals) -> float:
        """Tokens/s of the last seconds; 0 before two readings."""
        now_s = self._clock()
        if self._seen and signals.num_step_tokens < self._seen[-1][1]:
            self._seen.clear()  # the shards were lost, and the count begins anew
        self._seen.append((now_s, signals.num_step_tokens, signals.num_waiting > 0))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= _WINDOW_S:
            self._seen.popleft()
        first_s, num_tokens, _has_waiting = self._seen[0]
        if now_s <= first_s:
            return 0.0
        tokens_per_s = (signals.num_step_tokens - num_tokens) / (now_s - first_s)
        if now_s - first_s >= _WINDOW_S and all(has_waiting for _at_s, _tokens, has_waiting in self._seen):
            self._most_tokens_per_s = max(self._most_tokens_per_s, tokens_per_s)
        return tokens_per_s
