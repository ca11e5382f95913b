"""Tokens to text, one at a time, without ever tearing a character."""

import codecs
from typing import Protocol

import tokenizers

from serve_app.preprocessing.token_table import TokenTable

_MAX_HELD_TOKENS = 16  # a character has at most 4 bytes: what is longer undecided is not text


class IncrementalDetokenizer(Protocol):
    """Text of one growing token sequence."""

    def push(self, token_id: int) -> str:
        """Text that became certain with this token; empty while a character is incomplete."""
        ...

    def flush(self) -> str:
        """What is left at the end; an incomplete character shows as U+FFFD."""
        ...


class ByteLevelDetokenizer:
    """For byte-level vocabularies: joins the tokens' bytes, so a token costs one look-up."""

    def __init__(self, table: TokenTable, *, skipped_ids: frozenset[int] = frozenset()) -> None:
        self._bytes_of = table.bytes_of
        self._skipped_ids = skipped_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_torn = False  # the last character so far is not whole

    def push(self, token_id: int) -> str:
        """Text that became certain with this token."""
        if token_id in self._skipped_ids:
            return ""
        text_bytes = self._bytes_of(token_id)
        if text_bytes.isascii() and not self._is_torn:  # as most tokens' are
            return text_bytes.decode("ascii")
        text = self._decoder.decode(text_bytes)
        self._is_torn = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        """What is left at the end."""
        self._is_torn = False
        return self._decoder.decode(b"", True)


class WindowDetokenizer:
    """For any other vocabulary: decodes the last few tokens with the vocabulary's own decoder.

    The window starts one piece before what is new, for decoders that look at a token's neighbour (leading spaces); so
    what continues a prompt needs some tokens of the prompt pushed before it.
    """

    def __init__(self, core: tokenizers.Tokenizer, *, skipped_ids: frozenset[int] = frozenset()) -> None:
        self._core = core
        self._skipped_ids = skipped_ids
        self._window: list[int] = []
        self._num_shown = 0  # tokens of the window whose text is out
        self._shown_text = ""  # their text, decoded alone

    def push(self, token_id: int) -> str:
        """Text that became certain with this token."""
        if token_id in self._skipped_ids:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        is_long_held = len(self._window) - self._num_shown > _MAX_HELD_TOKENS
        if text.endswith("\ufffd") and not is_long_held:
            return ""
        if is_long_held and len(text) <= len(self._shown_text):  # they give no text, and never will
            del self._window[self._num_shown :]
        return self._show(text)

    def flush(self) -> str:
        """What is left at the end."""
        return self._show(self._decode(self._window))

    def _show(self, text: str) -> str:
        new_text = text[len(self._shown_text) :]
        if new_text:
            self._window = self._window[self._num_shown :]
            self._num_shown = len(self._window)
            self._shown_text = self._decode(self._window)
        return new_text

    def _decode(self, token_ids: list[int]) -> str:
        return self._core.decode(token_ids, skip_special_tokens=False)
