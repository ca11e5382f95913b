"""When tokens come. For each, a clock is read and a bucket counted; `python -m bench.metrics_cost` measures it."""

import time
from collections.abc import Callable

from serve_app.metrics.families import FIRST_TOKEN, TOKEN_GAP
from serve_app.metrics.times import Times


class TokenMeters:
    """Of one model, in one Gateway replica."""

    __slots__ = ("first_token", "gaps", "num_first_tokens", "num_untimed")

    def __init__(self) -> None:
        self.first_token = Times(FIRST_TOKEN.bounds_s)
        self.gaps = Times(TOKEN_GAP.bounds_s)
        self.num_first_tokens = 0  # of choices
        self.num_untimed = 0  # of requests that wait on purpose

    @property
    def num_tokens(self) -> int:
        """All that have come: each is a choice's first, or ends a gap, or is not timed."""
        return self.num_first_tokens + self.gaps.count + self.num_untimed


class UntimedTokens:
    """The tokens of a prompt that waits on purpose."""

    __slots__ = ("_meters",)

    def __init__(self, meters: TokenMeters) -> None:
        self._meters = meters

    def see(self, _choice: int, num_tokens: int) -> None:
        """See TokenTimes."""
        self._meters.num_untimed += num_tokens


class TokenTimes:
    """The tokens of one prompt. arrived_s: when its request came, by the same clock."""

    __slots__ = ("_add_gap", "_arrived_s", "_clock", "_has_begun", "_last_s", "_meters")

    def __init__(
        self,
        meters: TokenMeters,
        num_choices: int,
        arrived_s: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._meters = meters
        self._add_gap = meters.gaps.add
        self._arrived_s = arrived_s
        self._clock = clock
        self._last_s: list[float | None] = [None] * num_choices
        self._has_begun = False

    def see(self, choice: int, num_tokens: int) -> None:
        """Tokens of a choice have come together; at least one."""
        now_s = self._clock()
        last_s = self._last_s[choice]
        self._last_s[choice] = now_s
        if last_s is not None and num_tokens == 1:
            self._add_gap(now_s - last_s)
        else:
            self._see_others(last_s, now_s, num_tokens)

    def _see_others(self, last_s: float | None, now_s: float, num_tokens: int) -> None:
        """The first of a choice, or several at once: the time since the last is shared among them."""
        meters = self._meters
        if last_s is not None:
            meters.gaps.add_equal((now_s - last_s) / num_tokens, num_tokens)
            return
        meters.num_first_tokens += 1
        if not self._has_begun:
            self._has_begun = True
            meters.first_token.add(now_s - self._arrived_s)
        if num_tokens > 1:
            meters.gaps.add_equal(0.0, num_tokens - 1)
