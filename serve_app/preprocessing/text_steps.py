"""The steps that a chain may be made of: small, pure, each from one kind of value to another."""

import html
import re
import unicodedata
from typing import Literal, Protocol

from serve_app.errors import ConfigError
from serve_app.preprocessing.chat_template import ChatTemplateRenderer
from serve_app.preprocessing.pii import KIND_NAMES, redact, redact_all
from serve_app.preprocessing.sentences import split_sentences
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.chains import ChainValue, Redaction

_NORMALIZED_CHARS = 256  # at once: sorting the marks of one letter is quadratic in their number
_MAX_MARKS = 64  # of one letter; the Stream-Safe Text Format of Annex 15 keeps 30 together
_BLOCK_WORDS = "p div br li tr td th h1 h2 h3 h4 h5 h6 ul ol table section article header footer"
_BLOCK_TAGS = frozenset(_BLOCK_WORDS.split())
_LONG_REFERENCE = re.compile(r"&#(?=[0-9]{9})0*+([0-9]*+);?")  # Python's own reading of numbers ends at 4300 digits
# Ends at the next "<", so that a text of open tags is read once.
_TAG = re.compile(r"<(/?)(!?[A-Za-z][A-Za-z0-9]{0,30})(?:[^<>\"']|\"[^\"<]*\"|'[^'<]*')*+>")
_CLOSING_TAGS = {name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style", "template", "noscript")}


class ChainStep(Protocol):
    """From a value of the kind `takes` to one of the kind `gives`. A text step is run on each of several texts."""

    takes: str
    gives: str

    def run(self, value: ChainValue) -> tuple[ChainValue, list[Redaction]]:
        """The step's value, and what it has taken out."""
        ...


class TextStep:
    """Base of the steps from text to text."""

    takes = gives = "text"

    def run(self, value: ChainValue) -> tuple[ChainValue, list[Redaction]]:
        """Change a text, or each of several."""
        if value.texts is not None:
            return ChainValue(texts=[self.change(text) for text in value.texts]), []
        assert value.text is not None
        return ChainValue(text=self.change(value.text)), []

    def change(self, text: str) -> str:
        """What becomes of one text."""
        raise NotImplementedError


class NormalizeUnicode(TextStep):
    """One spelling for what looks the same (Unicode Standard Annex 15)."""

    def __init__(self, form: Literal["NFC", "NFD", "NFKC", "NFKD"] = "NFKC") -> None:
        if form not in ("NFC", "NFD", "NFKC", "NFKD"):
            raise ConfigError(f"form={form!r} is not known; use NFC, NFD, NFKC or NFKD")
        self._form: Literal["NFC", "NFD", "NFKC", "NFKD"] = form

    def change(self, text: str) -> str:
        """The text in the chosen form."""
        if text.isascii():
            return text
        pieces, start = [], 0
        while start < len(text):
            end = _end_of_letter(text, start + _NORMALIZED_CHARS)
            pieces.append(unicodedata.normalize(self._form, text[start:end]))
            start = end
        return "".join(pieces)


class Lowercase(TextStep):
    """Small letters."""

    def change(self, text: str) -> str:
        """The text in small letters."""
        return text.lower()


class CollapseWhitespace(TextStep):
    """One space between words, none around them."""

    def change(self, text: str) -> str:
        """The text with single spaces."""
        return " ".join(text.split())


class StripHtml(TextStep):
    """The text of a page: no tags, scripts, styles and comments; entities as their characters."""

    def change(self, text: str) -> str:
        """The text without markup."""
        text = _without_comments(text)
        pieces, position = [], 0
        while (match := _TAG.search(text, position)) is not None:
            pieces.append(text[position : match.start()])
            position = match.end()
            name = match[2].lower()
            if name in _BLOCK_TAGS:
                pieces.append(" ")
            if name in _CLOSING_TAGS and not match[1]:
                closing = _CLOSING_TAGS[name].search(text, position)
                position = len(text) if closing is None else closing.start()
        return _unescaped("".join([*pieces, text[position:]]))


class Truncate:
    """The beginning of a text (`max_chars`) or of token ids (`max_tokens`)."""

    def __init__(self, max_chars: int | None = None, max_tokens: int | None = None) -> None:
        if (max_chars is None) == (max_tokens is None):
            raise ConfigError("give either max_chars or max_tokens")
        limit = max_chars if max_chars is not None else max_tokens
        if type(limit) is not int or limit < 1:
            raise ConfigError(f"{limit!r} is not a length; use an integer above 0")
        self._limit = limit
        self.takes = self.gives = "text" if max_chars is not None else "token_ids"

    def run(self, value: ChainValue) -> tuple[ChainValue, list[Redaction]]:
        """Cut the end off."""
        if value.token_ids is not None:
            return ChainValue(token_ids=value.token_ids[: self._limit]), []
        if value.texts is not None:
            return ChainValue(texts=[text[: self._limit] for text in value.texts]), []
        assert value.text is not None
        return ChainValue(text=value.text[: self._limit]), []


class SplitSentences:
    """A text's sentences; see sentences.py for where they end."""

    takes, gives = "text", "texts"

    def run(self, value: ChainValue) -> tuple[ChainValue, list[Redaction]]:
        """Cut after sentence ends and blank lines."""
        assert value.text is not None
        return ChainValue(texts=split_sentences(value.text)), []


class RedactPii:
    """Placeholders for personal data that can be told by its form; see pii.py for what is covered."""

    takes = gives = "text"

    def __init__(self, kinds: list[str] | None = None) -> None:
        unknown = [kind for kind in kinds or [] if kind not in KIND_NAMES]
        if unknown:
            raise ConfigError(f"kinds={unknown[0]!r} is not known; use {', '.join(KIND_NAMES)}")
        self._kinds = tuple(kinds or KIND_NAMES)

    def run(self, value: ChainValue) -> tuple[ChainValue, list[Redaction]]:
        """Redact a text."""
        if value.texts is not None:
            texts, redactions = redact_all(value.texts, self._kinds)
            return ChainValue(texts=texts), redactions
        assert value.text is not None
        text, redactions = redact(value.text, self._kinds)
        return ChainValue(text=text), redactions


class Tokenize:
    """The model's own token ids, special ones included."""

    takes, gives = "text", "token_ids"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def run(self, value: ChainValue) -> tuple[ChainValue, list[Redaction]]:
        """Encode a text."""
        assert value.text is not None, "a chain of a model holds one text"
        return ChainValue(token_ids=self._tokenizer.encode_entry(value.text).token_ids), []


class ChatTemplate:
    """A prompt as the one message of a user, in the model's chat template.

    The messages of a conversation pass unchanged: it gets its template as a whole.
    """

    takes, gives = "text", "prompt"

    def __init__(self, tokenizer: Tokenizer, renderer: ChatTemplateRenderer | None) -> None:
        if tokenizer.chat_template is None:
            raise ConfigError("the model has no chat template; remove it")
        self._template = tokenizer.chat_template
        self._special_tokens = dict(tokenizer.special_tokens)
        self._renderer = renderer

    def run(self, value: ChainValue) -> tuple[ChainValue, list[Redaction]]:
        """Render a prompt; waits for another process."""
        if value.texts is not None:
            return value, []
        assert value.text is not None
        assert self._renderer is not None, "checking a chain runs no step"
        messages = [{"role": "user", "content": value.text}]
        return ChainValue(text=self._renderer.render_now(self._template, messages, self._special_tokens)), []


def _without_comments(text: str) -> str:
    pieces, position = [], 0
    while (start := text.find("<!--", position)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        pieces.append(text[position:start])
        position = end + 3
    return "".join([*pieces, text[position:]])


def _unescaped(text: str) -> str:
    """Entities as their characters; the number of one may be beyond Unicode, or begin with any number of zeros."""
    return html.unescape(_LONG_REFERENCE.sub(lambda found: f"&#{found[1][:9] or 0};", text))


def _end_of_letter(text: str, place: int) -> int:
    """The first place from here on where no letter is torn from its marks; in a run of marks some place."""
    last = min(place + _MAX_MARKS, len(text))
    while place < last and not _begins_letter(text[place]):
        place += 1
    return min(place, last)


def _begins_letter(character: str) -> bool:
    """Whether no form of Unicode joins a character to the one before it."""
    first = unicodedata.normalize("NFKD", character)[0]
    is_final_jamo = "\u1160" <= first <= "\u11ff"
    return not is_final_jamo and not unicodedata.category(first).startswith("M")
