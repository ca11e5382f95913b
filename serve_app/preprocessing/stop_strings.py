"""Stop strings in a growing text: holds back only what may still become one.

One Knuth-Morris-Pratt automaton for each stop string, so a character costs a constant number of steps.
"""

import re
from collections.abc import Sequence

from serve_app.errors import RequestError

MAX_STOP_STRINGS = 32
MAX_STOP_CHARS = 1024


class StopStrings:
    """The stop strings of one request, prepared once for all of its choices."""

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        """Raises RequestError for the field `stop`."""
        _check(stops)
        self.include_in_output = include_in_output
        self.patterns = [_Pattern(stop) for stop in dict.fromkeys(stops)]
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

    def feed(self, text: str) -> str:
        """Text that may be shown now. After a match: what comes before it (or with it), then nothing more."""
        if self.matched is not None:
            return ""
        if not self._held and not self._has_candidate.search(text):
            return text
        buffer = self._held + text
        for position in range(len(self._held), len(buffer)):
            stop = self._advance(buffer[position])
            if stop is not None:
                self.matched, self._held = stop, ""
                return buffer[: position + 1 if self._stops.include_in_output else position + 1 - len(stop)]
        num_safe = len(buffer) - max(self._num_matched)
        self._held = buffer[num_safe:]
        return buffer[:num_safe]

    def flush(self) -> str:
        """What was held back, when the text ended without a match."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        """The longest stop string that this character completes."""
        completed: str | None = None
        for index, pattern in enumerate(self._stops.patterns):
            num_matched = pattern.step(self._num_matched[index], character)
            self._num_matched[index] = num_matched
            if num_matched == len(pattern.text) and (completed is None or num_matched > len(completed)):
                completed = pattern.text
        return completed


class _Pattern:
    """One stop string: how much of it still matches after each character."""

    def __init__(self, text: str) -> None:
        self.text = text
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
