"""Taking personal data out of a text, and putting it back.

E-mail addresses, phone and card numbers, IBANs and IP addresses:
what can be told by its form alone, with check digits where there are some. Names and postal addresses are not covered.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from serve_app.types.chains import Redaction

# All patterns are bounded: each position of a text is tried for at most some 70 characters.
_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}(?!\w)")
_CARD = re.compile(r"(?<![\w-])[0-9](?:[ -]?[0-9]){12,18}(?![\w-])")
_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?:(?:\.[0-9]{1,3}){3})?(?![\w:])")
_PHONE = re.compile(r"(?<![\w.+])(?:\+|\()?[0-9][0-9 ()/.-]{5,20}[0-9](?!\w)")
_NATIONAL = re.compile(r"\(?[0-9]{3}\)?[ .-]?[0-9]{3}[ .-][0-9]{4}")

_PLACEHOLDER = re.compile(r"<[A-Za-z]{1,10}_[0-9]{1,9}>")

# Lengths by country, ISO 13616.
_IBAN_TABLE = """
AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22 DK:18 DO:28 EE:20 EG:29
ES:24 FI:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HR:21 HU:28 IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 KW:30 KZ:20
LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 MC:27 MD:24 ME:22 MK:19 MR:27 MT:31 MU:30 NL:18 NO:15 PK:24 PL:28 PS:29 PT:25 QA:29
RO:24 RS:22 SA:24 SC:31 SE:24 SI:19 SK:24 SM:27 SV:28 TL:23 TN:24 TR:26 UA:29 VA:22 VG:24 XK:20
"""
_IBAN_LENGTHS = dict(pair.split(":") for pair in _IBAN_TABLE.split())


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    pattern: re.Pattern[str]
    is_valid: Callable[[str], bool]


def redact(text: str, kinds: Iterable[str]) -> tuple[str, list[Redaction]]:
    """The text with placeholders such as <EMAIL_1>, and what they stand for; equal originals share one."""
    spans: list[tuple[int, int, str]] = []
    for kind in _KINDS:
        if kind.name in kinds:
            for match in kind.pattern.finditer(text):
                start, end = match.span()
                if kind.is_valid(match[0]) and not any(start < other[1] and other[0] < end for other in spans):
                    spans.append((start, end, kind.name))
    placeholders: dict[str, Redaction] = {}
    lowered = text.lower()
    numbers: dict[str, int] = {}
    pieces, position = [], 0
    for start, end, name in sorted(spans):
        original = text[start:end]
        if original not in placeholders:
            placeholder = _unused(name, numbers, lowered)
            placeholders[original] = Redaction(placeholder, name, original)
        pieces += [text[position:start], placeholders[original].placeholder]
        position = end
    return "".join([*pieces, text[position:]]), list(placeholders.values())


def restore(text: str, redactions: Iterable[Redaction]) -> str:
    """The text with the originals in the places of their placeholders."""
    restorer = Restorer(redactions)
    return restorer.feed(text) + restorer.flush()


class Restorer:
    """Puts the originals into a growing text; holds back what may still become a placeholder.

    Letters count the same in either case: a later step or the model may have changed it. A placeholder that stands for
    two originals stays as it is.
    """

    def __init__(self, redactions: Iterable[Redaction]) -> None:
        originals: dict[str, set[str]] = {}
        for redaction in redactions:
            originals.setdefault(redaction.placeholder.lower(), set()).add(redaction.original)
        self._originals = {key: next(iter(known)) for key, known in originals.items() if len(known) == 1}
        self._held = ""

    def feed(self, text: str) -> str:
        """Text that may be shown now."""
        text = self._held + text
        start = text.rfind("<")
        is_open = start >= 0 and self._may_become(text[start:].lower())
        self._held = text[start:] if is_open else ""
        return _PLACEHOLDER.sub(self._original_of, text[:start] if is_open else text)

    def flush(self) -> str:
        """What was held back, when the text has ended."""
        held, self._held = self._held, ""
        return held

    def _may_become(self, ending: str) -> bool:
        return any(len(ending) < len(key) and key.startswith(ending) for key in self._originals)

    def _original_of(self, match: re.Match[str]) -> str:
        return self._originals.get(match[0].lower(), match[0])


def _unused(name: str, numbers: dict[str, int], lowered: str) -> str:
    """A placeholder that a text, given in small letters, does not hold already."""
    while True:
        numbers[name] = numbers.get(name, 0) + 1
        placeholder = f"<{name.upper()}_{numbers[name]}>"
        if placeholder.lower() not in lowered:
            return placeholder


def _has_luhn(candidate: str) -> bool:
    """ISO/IEC 7812-1: every second digit from the right is doubled."""
    digits = [int(character) for character in candidate if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def _is_iban(candidate: str) -> bool:
    """ISO 13616: the country's length, and 1 modulo 97 with the first four characters moved to the end."""
    compact = candidate.replace(" ", "")
    if _IBAN_LENGTHS.get(compact[:2]) != str(len(compact)):
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def _is_ip(candidate: str) -> bool:
    try:
        ipaddress.ip_address(candidate)
    except ValueError:
        return False
    return candidate.strip(":") != ""


def _is_phone(candidate: str) -> bool:
    num_digits = sum(character.isdigit() for character in candidate)
    is_international = candidate.startswith(("+", "00"))
    is_national = candidate.startswith(("0", "(0")) or _NATIONAL.fullmatch(candidate) is not None
    return 7 <= num_digits <= 15 and (is_international or is_national)


_KINDS = (
    _Kind("email", _EMAIL, lambda _candidate: True),
    _Kind("iban", _IBAN, _is_iban),
    _Kind("card", _CARD, _has_luhn),
    _Kind("ip", _IPV6, _is_ip),
    _Kind("ip", _IPV4, _is_ip),
    _Kind("phone", _PHONE, _is_phone),
)
KIND_NAMES = ("email", "phone", "card", "iban", "ip")
