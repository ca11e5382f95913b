"""Where a text holds personal data that can be told by its form, with check digits where there are some.

Every pattern matches some 120 characters at most, so a text costs what it is long. It is searched window by window: one
call of the regular expression engine keeps all other threads waiting.
"""

import ipaddress
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from serve_app.preprocessing.phone_forms import find_phones
from serve_app.preprocessing.text_windows import (
    NOT_BEFORE_WORD,
    WORD,
    Span,
    accepted,
    beginning,
    translated,
    without,
)

_MARKS = "\u0300-\u036f"  # accents of their own: u and \u0308 are one letter too
_MAX_LOCAL_CHARS = 64  # of an e-mail address before its @ (RFC 5321)
# First without, then with the scripts that write no blanks: text of theirs may touch an address, or be one.
_LOCALS = [re.compile(rf"{one}(?:{one}|[{_MARKS}.%+'\u2019-]){{0,{_MAX_LOCAL_CHARS - 1}}}\Z") for one in (WORD, r"\w")]
_DOMAINS = [
    re.compile(
        rf"(?:(?:{one}|[{_MARKS}-]){{1,63}}\.){{1,8}}"
        rf"(?:xn--[A-Za-z0-9-]{{2,59}}|(?:(?![0-9_]){one}|[{_MARKS}]){{2,24}}(?!{one}))"
    )
    for one in (WORD, r"\w")
]

_IBAN_DIGITS = re.compile(
    rf"[0-9]{{2}}(?<=[A-Za-z]{{2}}[0-9]{{2}})(?<!{WORD}[A-Za-z]{{2}}[0-9]{{2}})"
)  # the check digits
# Lengths by country, ISO 13616.
_IBAN_TABLE = """
AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22 DK:18 DO:28 EE:20 EG:29
ES:24 FI:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HR:21 HU:28 IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 KW:30 KZ:20
LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 MC:27 MD:24 ME:22 MK:19 MR:27 MT:31 MU:30 NL:18 NO:15 PK:24 PL:28 PS:29 PT:25 QA:29
RO:24 RS:22 SA:24 SC:31 SE:24 SI:19 SK:24 SM:27 SV:28 TL:23 TN:24 TR:26 UA:29 VA:22 VG:24 XK:20
"""
_IBAN_CHARS = {country: int(length) for country, length in (pair.split(":") for pair in _IBAN_TABLE.split())}

_IPV4 = re.compile(rf"{beginning('[0-9]', '[.]')}[0-9]{{0,2}}(?:\.[0-9]{{1,3}}){{3}}{NOT_BEFORE_WORD}(?!\.[0-9])")
_IPV6 = re.compile(  # a word and a colon may stand before it, a colon may follow
    rf"(?<!{WORD})(?<![:.])(?:[A-Za-z]\w{{0,20}}:)??(?P<address>(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}[0-9A-Fa-f]{{0,4}}"
    rf"(?:(?:\.[0-9]{{1,3}}){{3}})?){NOT_BEFORE_WORD}(?!:[0-9A-Za-z:])"
)

_CARD_BEGINNING = re.compile(rf"{beginning('[0-9]', '[+]', '[0-9][.]')}(?=(?:[ .-]{{0,3}}[0-9]){{12}})")
_PRINTED_CARDS = ((4, 4, 4, 4, 3), (4, 4, 4, 4, 2), (4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 5))
_CARDS = [
    re.compile(rf"{form}{NOT_BEFORE_WORD}(?!\.[0-9])")
    for form in (
        *("[ .-]{1,3}".join(f"[0-9]{{{size}}}" for size in sizes) for sizes in _PRINTED_CARDS),
        "[0-9]{13,19}",
        "(?<![0-9][ -])[0-9]{2,7}(?:[ -][0-9]{2,7}){1,8}(?![ -][0-9])",  # any other groups, when they stand alone
    )
]

# One character for one: a text keeps its length.
_LOOKALIKES = {
    **{0xFEE0 + ord(shown): shown for shown in f"{string.digits}{string.ascii_letters}@.-+()/_"},
    **{zero + digit: str(digit) for zero in (0x0660, 0x06F0, 0x0966) for digit in range(10)},
    **dict.fromkeys((0x00A0, 0x2007, 0x2009, 0x202F, 0x3000), " "),
    **dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2212), "-"),
}


@dataclass(frozen=True, slots=True)
class FoundSpan:
    """A place of a text, and the kind of data that stands there."""

    start: int
    end: int
    kind: str


def find_personal_data(text: str, kinds: tuple[str, ...]) -> list[FoundSpan]:
    """The places of these kinds, in their order; none overlaps another."""
    searched = text if text.isascii() else translated(text, _LOOKALIKES)
    found: list[FoundSpan] = []
    for kind, find in _FINDERS:
        spans = list(find(searched)) if kind in kinds else []
        found += [FoundSpan(start, end, kind) for start, end in spans]
        searched = without(searched, spans)
    return sorted(found, key=lambda one: one.start)


def _find_emails(text: str) -> Iterator[Span]:
    last_end, at = 0, text.find("@")
    while at >= 0:
        domain = next((found for form in _DOMAINS if (found := form.match(text, at + 1))), None)
        first = max(last_end, at - _MAX_LOCAL_CHARS)
        if domain and (local := next((found for form in _LOCALS if (found := form.search(text, first, at))), None)):
            last_end = domain.end()
            yield local.start(), last_end
        at = text.find("@", at + 1)


def _find_ibans(text: str) -> Iterator[Span]:
    return accepted(_IBAN_DIGITS, text, _iban_at)


@cache
def _iban_form(num_chars: int) -> re.Pattern[str]:
    """Of that length; made when it is asked for, as most processes that import this ask for none."""
    return re.compile(rf"[A-Za-z0-9](?:[ -]{{0,2}}[A-Za-z0-9]){{{num_chars - 1}}}{NOT_BEFORE_WORD}")


def _iban_at(digits: re.Match[str], _last_end: int) -> Span | None:
    """ISO 13616: the country's length, and 1 modulo 97 with the first four characters moved to the end."""
    text, start = digits.string, digits.start() - 2
    num_chars = _IBAN_CHARS.get(text[start : start + 2].upper())
    found = _iban_form(num_chars).match(text, start) if num_chars is not None else None
    if found is None:
        return None
    compact = found[0].replace(" ", "").replace("-", "")
    is_valid = int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1
    return found.span() if is_valid else None


def _find_cards(text: str) -> Iterator[Span]:
    return accepted(_CARD_BEGINNING, text, _card_at)


def _card_at(place: re.Match[str], _last_end: int) -> Span | None:
    forms = (form.match(place.string, place.start()) for form in _CARDS)
    return next((found.span() for found in forms if found and _has_luhn(found[0])), None)


def _has_luhn(candidate: str) -> bool:
    """13 to 19 digits; ISO/IEC 7812-1: every second digit from the right is doubled."""
    digits = [int(character) for character in candidate if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def _find_ipv6(text: str) -> Iterator[Span]:
    return accepted(_IPV6, text, _ipv6_in) if text.count(":") > 1 else iter(())


def _ipv6_in(found: re.Match[str], _last_end: int) -> Span | None:
    address, start = found["address"], found.start("address")
    if address.endswith(":") and not address.endswith("::"):
        address = address[:-1]
    return (start, start + len(address)) if address.strip(":") and _is_ip(address) else None


def _find_ipv4(text: str) -> Iterator[Span]:
    return accepted(_IPV4, text, lambda found, _last_end: found.span() if _is_ip(found[0]) else None)


def _is_ip(candidate: str) -> bool:
    try:
        ipaddress.ip_address(candidate)
    except ValueError:
        return False
    return True


_FINDERS: tuple[tuple[str, Callable[[str], Iterator[Span]]], ...] = (
    ("email", _find_emails),
    ("iban", _find_ibans),
    ("card", _find_cards),
    ("ip", _find_ipv6),
    ("ip", _find_ipv4),
    ("phone", find_phones),
)
