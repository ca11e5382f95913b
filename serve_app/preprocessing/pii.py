"""Taking personal data out of texts, and putting it back.

E-mail addresses, phone and card numbers, IBANs and IP addresses: what pii_forms.py tells by its form. Names and postal
addresses are not covered.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from serve_app.preprocessing.pii_forms import find_personal_data
from serve_app.types.chains import Redaction

KIND_NAMES = ("email", "phone", "card", "iban", "ip")
_PLACEHOLDER = re.compile(r"<[A-Za-z]{1,10}_[0-9]{1,9}>")


def redact(text: str, kinds: Iterable[str]) -> tuple[str, list[Redaction]]:
    """The text with placeholders such as <EMAIL_1>, and what they stand for; equal originals share one."""
    (redacted,), redactions = redact_all([text], kinds)
    return redacted, redactions


def redact_all(texts: Sequence[str], kinds: Iterable[str]) -> tuple[list[str], list[Redaction]]:
    """Several texts that share their placeholders. Those that one of them holds already are not used."""
    placeholders = _Placeholders(texts)
    wanted = tuple(kinds)
    return [_redacted(text, wanted, placeholders) for text in texts], list(placeholders.by_original.values())


def restore(text: str, redactions: Iterable[Redaction]) -> str:
    """The text with the originals in the places of their placeholders."""
    return Originals(redactions).restore(text)


class Originals:
    """What placeholders stand for, prepared once for all texts of a request.

    Letters count the same in either case: a later step or the model may have changed it. A placeholder that stands for
    two originals stays as it is.
    """

    def __init__(self, redactions: Iterable[Redaction]) -> None:
        originals: dict[str, set[str]] = {}
        for redaction in redactions:
            originals.setdefault(redaction.placeholder.lower(), set()).add(redaction.original)
        self._originals = {key: next(iter(known)) for key, known in originals.items() if len(known) == 1}
        self._sorted_keys = sorted(self._originals)

    def restore(self, text: str) -> str:
        """The text with the originals in the places of their placeholders."""
        return _PLACEHOLDER.sub(lambda match: self._originals.get(match[0].lower(), match[0]), text)

    def may_become_known(self, ending: str) -> bool:
        """Whether a text that ends so may go on to a placeholder."""
        lowered = ending.lower()
        following = bisect_right(self._sorted_keys, lowered)
        return following < len(self._sorted_keys) and self._sorted_keys[following].startswith(lowered)


class Restorer:
    """Puts the originals into a growing text; holds back what may still become a placeholder."""

    def __init__(self, originals: Originals) -> None:
        self._originals = originals
        self._held = ""

    def feed(self, text: str) -> str:
        """Text that may be shown now."""
        text = self._held + text
        start = text.rfind("<")
        is_open = start >= 0 and self._originals.may_become_known(text[start:])
        self._held = text[start:] if is_open else ""
        return self._originals.restore(text[:start] if is_open else text)

    def flush(self) -> str:
        """What was held back, when the text has ended."""
        held, self._held = self._held, ""
        return held


class _Placeholders:
    """Gives each original a placeholder that no text holds already."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.by_original: dict[str, Redaction] = {}
        self._taken = {placeholder.lower() for text in texts for placeholder in _PLACEHOLDER.findall(text)}
        self._numbers: dict[str, int] = {}

    def placeholder_of(self, original: str, kind: str) -> str:
        """The original's own one, which may be new."""
        if original not in self.by_original:
            self.by_original[original] = Redaction(self._unused(kind), kind, original)
        return self.by_original[original].placeholder

    def _unused(self, kind: str) -> str:
        while True:
            self._numbers[kind] = self._numbers.get(kind, 0) + 1
            placeholder = f"<{kind.upper()}_{self._numbers[kind]}>"
            if placeholder.lower() not in self._taken:
                return placeholder


def _redacted(text: str, kinds: tuple[str, ...], placeholders: _Placeholders) -> str:
    pieces, position = [], 0
    for span in find_personal_data(text, kinds):
        placeholder = placeholders.placeholder_of(text[span.start : span.end], span.kind)
        pieces += [text[position : span.start], placeholder]
        position = span.end
    return "".join([*pieces, text[position:]])
