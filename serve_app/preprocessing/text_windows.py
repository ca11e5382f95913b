"""Searching a text in windows, so that no single call keeps other threads waiting for as long as the text is."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

Span = tuple[int, int]  # start and end

# A letter or digit of a script that writes blanks between words; text of the others may touch what is looked for.
WORD = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ud7ff\uf900-\ufaff\uff66-\uff9f]"
NOT_BEFORE_WORD = f"(?!{WORD})"

_WINDOW_CHARS = 65_536
_MARGIN_CHARS = 256  # more than a match has, with what its pattern looks at behind it


def beginning(first: str, *not_behind: str) -> str:
    """A pattern's first character, a class, which does not stand behind a word or behind any of the others.

    The assertions follow it: the engine jumps from one possible first character to the next.
    """
    return first + "".join(f"(?<!{one}{first})" for one in (WORD, *not_behind))


def accepted(
    pattern: re.Pattern[str], text: str, accept: Callable[[re.Match[str], int], Span | None]
) -> Iterator[Span]:
    """The spans that `accept` makes of matches, which it gets with the end of the span before.

    After a refusal the next character is tried: what lies inside a refused match is found too. No match of the pattern
    may be longer than 200 characters.
    """
    position = last_end = 0
    while position < len(text):
        window_end = min(position + _WINDOW_CHARS, len(text))
        match = pattern.search(text, position, min(window_end + _MARGIN_CHARS, len(text)))
        if match is None or match.start() >= window_end:
            position = window_end
        elif (span := accept(match, last_end)) is None:
            position = match.start() + 1
        else:
            position = last_end = span[1]
            yield span


def translated(text: str, table: Mapping[int, str]) -> str:
    """What `str.translate` makes of a text."""
    starts = range(0, len(text), _WINDOW_CHARS)
    return "".join(text[start : start + _WINDOW_CHARS].translate(table) for start in starts)


def without(text: str, spans: Sequence[Span]) -> str:
    """A text of the same length that shows nothing at these places."""
    pieces, position = [], 0
    for start, end in spans:
        pieces += [text[position:start], "\0" * (end - start)]
        position = end
    return "".join([*pieces, text[position:]])
