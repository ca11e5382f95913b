"""A growing text, read from its beginning by generators that yield where they need more of it.

However the text is cut, they see the same characters in the same order: what is read does not depend on the cuts.
"""

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]  # yields: more text is needed, or the end
Emit = Callable[[str], None]

MAX_HELD_CHARS = 65_536  # of a text that is not certain to be a call yet
BLANKS = " \t\r\n"
_NOT_BLANK = re.compile(r"[^ \t\r\n]")
_IN_STRING = re.compile(r'["\\]')
_OUTSIDE_STRINGS = re.compile(r'["{}\[\]<]')  # no JSON has a "<" there: what begins so is another part of the answer
_NOTHING = r"(?!)"
_SCALAR = re.compile(r"[-+.\w]*")


class Stops:
    """Texts that end a part of an answer, prepared for a growing text; without any it has no end."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.pattern = re.compile("|".join(map(re.escape, texts)) or _NOTHING)
        self._beginnings = {text[:length] for text in texts for length in range(1, len(text))}
        self._most_held = max(map(len, texts), default=1) - 1

    def num_open(self, text: str, start: int) -> int:
        """How many of the last characters, from `start` on, may still become one of the texts."""
        for length in range(min(self._most_held, len(text) - start), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0


class TextReader:
    """What has come of a text and is not used yet."""

    def __init__(self) -> None:
        self.text = ""
        self.position = 0  # what is before it is read, though it may be read again
        self.is_ended = False

    def take(self) -> str:
        """What has been read, used with that."""
        taken, self.text, self.position = self.text[: self.position], self.text[self.position :], 0
        return taken

    @property
    def is_too_long(self) -> bool:
        """Whether more has been read than may be held back."""
        return self.position > MAX_HELD_CHARS

    def peek(self) -> Reading[str]:
        """The next character; empty at the end, and where more has been read than may be held back."""
        if self.is_too_long:
            return ""
        while self.position >= len(self.text):
            if self.is_ended:
                return ""
            yield
        return self.text[self.position]

    def skip_blanks(self) -> Reading[None]:
        """Read on to the next character that is not blank. Too many are not skipped."""
        while not self.is_too_long:
            found = _NOT_BLANK.search(self.text, self.position)
            self.position = min(found.start() if found else len(self.text), MAX_HELD_CHARS + 1)
            if found or self.is_ended:
                return
            yield

    def skip(self, expected: str) -> Reading[bool]:
        """Read `expected` if it comes next."""
        while not self.is_too_long:
            following = self.text[self.position : self.position + len(expected)]
            if following == expected:
                self.position += len(expected)
                return True
            if self.is_ended or not expected.startswith(following):
                return False
            yield
        return False

    def read_to(self, stops: Stops, emit: Emit) -> Reading[str]:
        """Hand on, and use, what comes before the first of `stops`. Which it is, not yet read; empty at the end."""
        while True:
            found = stops.pattern.search(self.text, self.position)
            if found:
                self.position = found.start()
                emit(self.take())
                return found[0]
            num_open = 0 if self.is_ended else stops.num_open(self.text, self.position)
            self.position = len(self.text) - num_open
            emit(self.take())
            if self.is_ended:
                return ""
            yield

    def read_while(self, characters: frozenset[str], max_length: int) -> Reading[str]:
        """As many of these characters as come next, up to one more than `max_length`."""
        start = self.position
        while self.position - start <= max_length and (yield from self.peek()) in characters:
            self.position += 1
        return self.text[start : self.position]

    def skip_value(self, emit: Emit | None = None) -> Reading[bool]:
        """Read a JSON value, as far as brackets and quotes tell; False where it breaks off.

        `emit` gets what has been read, which is used with that; without it a value that is too long is broken.
        """
        first = yield from self.peek()
        if first == '"':
            return (yield from self._skip_string(emit))
        if first not in ("{", "["):
            return (yield from self._skip_scalar())
        depth = 0
        while emit is not None or not self.is_too_long:
            found = _OUTSIDE_STRINGS.search(self.text, self.position)
            self.position = found.start() if found else len(self.text)
            if found is None:
                if self.is_ended:
                    return False
                yield from self._wait(emit)
            elif found[0] == '"':
                if not (yield from self._skip_string(emit)):
                    return False
            elif found[0] == "<":
                return False
            else:
                self.position += 1
                depth += 1 if found[0] in "{[" else -1
                if depth == 0:
                    break
        return emit is not None or not self.is_too_long

    def _skip_string(self, emit: Emit | None) -> Reading[bool]:
        self.position += 1
        while emit is not None or not self.is_too_long:
            found = _IN_STRING.search(self.text, self.position)
            self.position = found.start() if found else len(self.text)
            if found and found[0] == '"':
                self.position += 1
                break
            if found and len(self.text) > self.position + 1:
                self.position += 2
            elif self.is_ended:
                self.position = len(self.text)
                return False
            else:
                yield from self._wait(emit)
        return emit is not None or not self.is_too_long

    def _skip_scalar(self) -> Reading[bool]:
        start = self.position
        while not self.is_too_long:
            found = _SCALAR.match(self.text, self.position)
            assert found is not None, "it matches nothing too"
            self.position = found.end()
            if self.is_ended or self.position < len(self.text):
                return self.position > start and not self.is_too_long
            yield
        return False

    def _wait(self, emit: Emit | None) -> Reading[None]:
        if emit is not None:
            emit(self.take())
        yield
