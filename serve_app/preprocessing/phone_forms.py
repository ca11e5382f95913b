"""Where a text holds phone numbers: international ones, national ones with a trunk zero, and American ones."""

import re
from collections.abc import Iterator

from serve_app.preprocessing.text_windows import NOT_BEFORE_WORD, WORD, Span, accepted, beginning, without

_BEGINNING = re.compile(beginning("[0-9+(]", r"\+", r"[0-9]\."))
_PHONE = re.compile(
    rf"(?P<paired>0[1-9](?:[ .-]?[0-9]{{2}}){{4}}{NOT_BEFORE_WORD}(?![./-][0-9]))"
    r"|(?P<open>\(?(?:\+[1-9]|0(?:0?[1-9]|0? ?[1-9][0-9]|-[1-9][0-9]|\) ?[1-9]))[0-9 ()/.-]{4,30})"
    r"|(?<![0-9][/-])(?P<american>(?:1[ .-]?)?(?:\([0-9]{3}\)|[0-9]{3})[ .-]{0,2}[0-9]{3}[ .-][0-9]{4})"
    rf"{NOT_BEFORE_WORD}(?![./-][0-9])"
)


def _alone(form: str, marks: str) -> re.Pattern[str]:
    """A form that begins with a digit and is not a part of more digits behind such marks."""
    return re.compile(f"{beginning('[0-9]', f'[0-9][{marks}]')}{form}{NOT_BEFORE_WORD}(?![{marks}][0-9])")


_YEAR = "(?:1[89]|2[01])[0-9]{2}"
_DATES = [  # none of them is a phone number, and 01.23.45.67.89 is none of them
    _alone(rf"[0-9]?([./])[0-9]{{1,2}}\1(?:{_YEAR}|[0-9]{{2}})", "./"),
    _alone(rf"[0-9]?(-)[0-9]{{1,2}}-(?:{_YEAR}|[0-9]{{2}})", "-"),
    _alone(f"[0-9]?( )[0-9]{{1,2}} {_YEAR}", " "),
    _alone(f"[0-9][./]{_YEAR}", "./"),  # a month
    _alone(r"[0-9]?\.[0-5][0-9] ?- ?[0-9]{1,2}\.[0-5][0-9]", "."),  # hours
]
_WORD = re.compile(WORD)
_ENDS = re.compile(r"(?<=[0-9])(?![0-9])|(?<=[0-9]\))")
_IN_PARENTHESES = re.compile(r"\(\+?[0-9 ]{1,6}\)")
_GOES_ON = re.compile(r"[ ./-]{0,3}\(?\+?[0-9]")
_BEGINS_ANEW = re.compile(r"[ ./-]{1,3}(?:0|\(|\+)")
_IS_GLUED = re.compile(r"[./-][0-9]")
_LONG_GROUP_BEFORE = re.compile(r"[0-9]{3}[ ./-]\Z")


def find_phones(text: str) -> Iterator[Span]:
    """The places of phone numbers, in their order."""
    for form in _DATES:
        text = without(text, list(accepted(form, text, _date_in)))
    return accepted(_BEGINNING, text, _phone_at)


def _date_in(found: re.Match[str], _last_end: int) -> Span | None:
    """A month, hours, or a day and a month in either order."""
    if found.lastindex is None:
        return found.span()
    first, second = sorted(map(int, found[0].split(found[1])[:2]))
    return found.span() if 1 <= first <= 12 and 1 <= second <= 31 else None


def _phone_at(place: re.Match[str], last_end: int) -> Span | None:
    text, start = place.string, place.start()
    found = _PHONE.match(text, start)
    if found is None or found.lastgroup == "american":
        return None if found is None else found.span()
    is_later_part = _LONG_GROUP_BEFORE.search(text, max(last_end, start - 4), start) is not None
    if is_later_part and "+" not in found[0][:2]:  # of a longer number, which is none of these
        return None
    if found.lastgroup == "paired":
        return found.span()
    end = _end_of(text, start, found.end())
    return None if end is None else (start, end)


def _end_of(text: str, start: int, stop: int) -> int | None:
    """Where a number that starts here ends.

    Several may stand in a row: best is an end behind which nothing goes on, then one before what looks like the next
    one's beginning, then one before a blank; of those the last.
    """
    best: tuple[bool, bool, bool, int] | None = None
    for place in _ENDS.finditer(text, start + 1, stop):
        end = place.end()
        if _WORD.match(text, end) or not _is_phone(text[start:end]):
            continue
        begins_anew = _BEGINS_ANEW.match(text, end) is not None
        rank = (not _GOES_ON.match(text, end), begins_anew, not _IS_GLUED.match(text, end), end)
        best = rank if best is None else max(best, rank)
    return None if best is None else best[-1]


def _is_phone(candidate: str) -> bool:
    """The lengths of E.164; a national number has a trunk zero in place of its country's code."""
    digits = "".join(character for character in candidate if character.isdigit())
    bare = _IN_PARENTHESES.sub("", candidate)
    if "(" in bare or ")" in bare or len(set(digits)) < 2:
        return False
    if "+" not in candidate[:2] and not digits.startswith("00"):
        return 7 <= len(digits) <= 13
    number = digits if "+" in candidate[:2] else digits[2:]
    return len(number) == 11 if number.startswith("1") else 7 <= len(number) <= 15 and not number.startswith("0")
