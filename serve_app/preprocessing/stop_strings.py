"""Stop strings in a growing text: holds back only what may still become one.

One Knuth-Morris-Pratt automaton for each stop string, so a character costs a constant number of steps.
"""

import re
from collections.abc import Collection, Sequence

from serve_app.errors import RequestError

MAX_STOP_STRINGS = 32
MAX_STOP_CHARS = 1024


class StopStrings:
    """The stop strings of one request, prepared once for all of its choices."""

    def __init__(
        self, stops: Sequence[str], *, include_in_output: bool = False, special_tokens: Collection[str] = ()
    ) -> None:
        """Stop strings may hold `special_tokens`, which the text need not show. Raises RequestError for `stop`."""
        _check(stops)
        self.include_in_output = include_in_output
        self.patterns = [
            _Pattern(stop, has_special=any(token in stop for token in special_tokens)) for stop in dict.fromkeys(stops)
        ]
        self.has_special = any(pattern.has_special for pattern in self.patterns)
        first_characters = "".join(re.escape(pattern.text[0]) for pattern in self.patterns)
        self.first_character = re.compile(f"[{first_characters}]") if self.patterns else None

    def matcher(self) -> "StopMatcher | None":
        """A fresh matcher for one choice; None when there is nothing to match."""
        return StopMatcher(self) if self.patterns else None


class StopMatcher:
    """Filters the text of one choice."""

    def __init__(self, stops: StopStrings) -> None:
        self.matched: str | None = None  # the stop string that ended the text
        self._stops = stops
        self._has_candidate = re.compile("") if stops.first_character is None else stops.first_character
        self._num_matched = [0] * len(stops.patterns)
        self._held = ""
        self._hidden: set[int] = set()  # places in what is held that the text does not show

    def feed(self, text: str) -> str:
        """Text that may be shown now. After a match: what comes before it (or with it), then nothing more."""
        if not self._held and not self._has_candidate.search(text):
            return "" if self.matched is not None else text
        return self._feed(text, is_hidden=False)

    def feed_hidden(self, token: str) -> str:
        """Text that may be shown now, after a special token that is not: only stop strings that hold one see it."""
        return self._feed(token, is_hidden=True) if self._stops.has_special else ""

    def flush(self) -> str:
        """What was held back, when the text ended without a match."""
        held = self._shown(self._held, len(self._held))
        self._held, self._hidden = "", set()
        return held

    def _feed(self, text: str, *, is_hidden: bool) -> str:
        if self.matched is not None:
            return ""
        buffer, start = self._held + text, len(self._held)
        if is_hidden:
            self._hidden.update(range(start, len(buffer)))
        for position in range(start, len(buffer)):
            stop = self._advance(buffer[position], is_hidden=is_hidden)
            if stop is not None:
                self.matched, self._held = stop.text, ""
                before = self._shown(buffer, self._begin(position + 1, len(stop.text), stop))
                return before + stop.text if self._stops.include_in_output else before
        return self._release(buffer)

    def _release(self, buffer: str) -> str:
        """What no stop string can begin in; the rest is held, of hidden places only what one has matched."""
        counts = list(zip(self._num_matched, self._stops.patterns, strict=True))
        num_safe = min(self._begin(len(buffer), count, pattern) for count, pattern in counts)
        released = self._shown(buffer, num_safe)
        if not self._hidden:
            self._held = buffer[num_safe:]
            return released
        first_hidden = min((len(buffer) - count for count, one in counts if one.has_special), default=len(buffer))
        kept = [place for place in range(num_safe, len(buffer)) if place >= first_hidden or place not in self._hidden]
        self._held = "".join(buffer[place] for place in kept)
        self._hidden = {index for index, place in enumerate(kept) if place in self._hidden}
        return released

    def _begin(self, end: int, count: int, pattern: "_Pattern") -> int:
        """Where the last `count` characters before `end` begin that a stop string sees."""
        if pattern.has_special or not self._hidden:
            return end - count
        while count:
            end -= 1
            count -= end not in self._hidden
        return end

    def _shown(self, buffer: str, end: int) -> str:
        if not self._hidden:
            return buffer[:end]
        return "".join(buffer[place] for place in range(end) if place not in self._hidden)

    def _advance(self, character: str, *, is_hidden: bool) -> "_Pattern | None":
        """The longest stop string that this character completes."""
        completed: _Pattern | None = None
        for index, pattern in enumerate(self._stops.patterns):
            if is_hidden and not pattern.has_special:
                continue
            num_matched = pattern.step(self._num_matched[index], character)
            self._num_matched[index] = num_matched
            if num_matched == len(pattern.text) and (completed is None or num_matched > len(completed.text)):
                completed = pattern
        return completed


class _Pattern:
    """One stop string: how much of it still matches after each character."""

    def __init__(self, text: str, *, has_special: bool) -> None:
        self.text = text
        self.has_special = has_special  # it holds a special token, so that it sees those that are not shown
        self._fallback = [0] * len(text)  # length of the longest proper prefix that is a suffix of text[:i + 1]
        num_matched = 0
        for index in range(1, len(text)):
            num_matched = self._fallback[index] = self.step(num_matched, text[index])

    def step(self, num_matched: int, character: str) -> int:
        """Characters of the stop string that match the end of the text, after one more character."""
        while num_matched and self.text[num_matched] != character:
            num_matched = self._fallback[num_matched - 1]
        return num_matched + 1 if self.text[num_matched] == character else 0


def _check(stops: Sequence[str]) -> None:
    if len(stops) > MAX_STOP_STRINGS:
        raise RequestError(f"stop has {len(stops)} strings; send at most {MAX_STOP_STRINGS}", field="stop")
    for index, stop in enumerate(stops):
        if not stop:
            raise RequestError(f"stop[{index}] is empty; leave it out", field="stop")
        if len(stop) > MAX_STOP_CHARS:
            raise RequestError(f"stop[{index}] has {len(stop)} characters; send at most {MAX_STOP_CHARS}", field="stop")
