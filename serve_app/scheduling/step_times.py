"""How long steps have taken of late: what a scheduler's estimates are made of."""

import math

from serve_app.types.plans import SeenRates

_KEPT_SHARE = 0.9  # of what is known, after each step: the last ten or so count
_MAX_RATIO = 4.0  # a process that stood still for a while is no measure of its steps
_MIN_STEPS = 8  # fewer are the first steps of a process, which are slow


class RecentMean:
    """A mean in which what is recent counts most. max_ratio: to it, above which a value counts as that much."""

    def __init__(self, max_ratio: float = math.inf) -> None:
        self.num_taken = 0
        self._max_ratio = max_ratio
        self._weight = 0.0
        self._total = 0.0

    def take(self, value: float, weight: float = 1.0) -> None:
        """One more, as often as `weight` says."""
        if self._total > 0:
            value = min(value, self._max_ratio * self._total / self._weight)
        self.num_taken += 1
        self._weight = _KEPT_SHARE * self._weight + weight
        self._total = _KEPT_SHARE * self._total + value * weight

    @property
    def value(self) -> float | None:
        """None before there is one."""
        return self._total / self._weight if self._weight else None


class StepTimes:
    """Of a model that generates: a step that only decodes, and what a token of a prompt adds to one."""

    def __init__(self) -> None:
        self._last_s = 0.0
        self._decoding = RecentMean(_MAX_RATIO)
        self._prompt_token = RecentMean(_MAX_RATIO)
        self._prefilling_token = RecentMean()  # with all else that its step does
        self._sequences = RecentMean()

    def take(self, sent_s: float, now_s: float, num_prompt_tokens: int, num_sequences: int = 1) -> None:
        """A step that was sent then has come back. What it waited behind the one before is not its own."""
        step_s = now_s - max(sent_s, self._last_s)
        self._last_s = now_s
        if step_s <= 0:
            return  # nobody measures
        if num_prompt_tokens == 0:
            self._decoding.take(step_s)
            self._sequences.take(num_sequences)
        else:
            added_s = max(0.0, step_s - (self._decoding.value or 0.0))
            self._prompt_token.take(added_s / num_prompt_tokens, num_prompt_tokens)
            self._prefilling_token.take(step_s / num_prompt_tokens, num_prompt_tokens)

    @property
    def decoding_s(self) -> float | None:
        """A step that only decodes; None before enough have been measured."""
        return self._decoding.value if self._decoding.num_taken >= _MIN_STEPS else None

    @property
    def prompt_token_s(self) -> float:
        """What a token of a prompt adds; 0 before it was measured."""
        return self._prompt_token.value or 0.0

    @property
    def seen(self) -> SeenRates:
        """What that is in tokens each second."""
        token_s, step_s, num_sequences = self._prefilling_token.value, self.decoding_s, self._sequences.value
        prefill = 1 / token_s if token_s else None
        if step_s is None or num_sequences is None:
            return SeenRates(prefill)
        return SeenRates(prefill, num_sequences / step_s, num_sequences)


class BatchTimes:
    """Of models that are done after one step: a step, and one that is at least half full."""

    def __init__(self) -> None:
        self._last_s = 0.0
        self._any = RecentMean(_MAX_RATIO)
        self._full = RecentMean(_MAX_RATIO)
        self._entries = RecentMean()

    def take(self, sent_s: float, now_s: float, *, is_half_full: bool, num_entries: int = 1) -> None:
        """A step that was sent then has come back."""
        step_s = now_s - max(sent_s, self._last_s)
        self._last_s = now_s
        if step_s <= 0:
            return  # nobody measures
        self._any.take(step_s)
        self._entries.take(num_entries)
        if is_half_full:
            self._full.take(step_s)

    @property
    def seen(self) -> SeenRates:
        """What that is in entries each second."""
        step_s, num_entries = self._any.value, self._entries.value
        return SeenRates() if not step_s or num_entries is None else SeenRates(entries_per_s=num_entries / step_s)

    @property
    def full_step_s(self) -> float | None:
        """At least so long takes a step that is full; None before enough have been measured."""
        if self._any.num_taken < _MIN_STEPS:
            return None
        return self._full.value or self._any.value
