"""Text and bytes of single tokens, whatever way the vocabulary spells them."""

import json
import re
from collections.abc import Collection, Sequence

import tokenizers

_CONTEXT_TOKENS = 4  # that show: no character has more bytes, and a decoder drops a space at most of the first
_MAX_CONTEXT_TOKENS = 64  # looked at: what is longer is special tokens, or bytes that are not text
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenTable:
    """Spells tokens of one vocabulary; each is worked out once."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        self._core = core
        added = core.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.special_tokens: dict[int, str] = {one: added[one].content for one in self.special_token_ids}
        self._added_token_ids = frozenset(added)
        self.is_byte_level = _has_byte_level_decoder(core)
        self._bytes_by_id: dict[int, bytes] = {}

    def skipped_ids(self, shown: Collection[str]) -> frozenset[int]:
        """The special tokens but those that are to be shown."""
        if not shown:
            return self.special_token_ids
        return frozenset(one for one, text in self.special_tokens.items() if text not in shown)

    def bytes_of(self, token_id: int) -> bytes:
        """UTF-8 bytes the token stands for: maybe a part of a character; empty for an id without a token."""
        found = self._bytes_by_id.get(token_id)
        if found is None:
            found = self._bytes_by_id[token_id] = self._spell(token_id)
        return found

    def text_of(self, token_id: int) -> str:
        """The token as a text; what is not a whole character shows as U+FFFD."""
        return self.bytes_of(token_id).decode("utf-8", errors="replace")

    def context_of(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> list[int]:
        """The last tokens, as far as the text of what follows depends on them: some that show, no half character."""
        skipped = self.special_token_ids if skip_special_tokens else frozenset[int]()
        context: list[int] = []
        for token_id in token_ids[: -_MAX_CONTEXT_TOKENS - 1 : -1]:
            spelling = b"" if token_id in skipped else self.bytes_of(token_id)
            if not spelling:
                continue
            context.append(token_id)
            if len(context) >= _CONTEXT_TOKENS and not 0x80 <= spelling[0] < 0xC0:
                break
        return context[::-1]

    def _spell(self, token_id: int) -> bytes:
        token = self._core.id_to_token(token_id)
        if token is None:
            return b""
        if self.is_byte_level:
            return _byte_level_bytes(token)
        if token_id in self._added_token_ids:
            return token.encode("utf-8")
        byte_token = _BYTE_TOKEN.fullmatch(token)
        if byte_token:
            return bytes([int(byte_token[1], 16)])
        return token.replace("\u2581", " ").removeprefix("##").encode("utf-8")


def _byte_level_bytes(token: str) -> bytes:
    """As the byte-level decoder does: a token with any character outside its alphabet is taken as plain text."""
    values = [_BYTE_OF_CHARACTER.get(character) for character in token]
    if None in values:
        return token.encode("utf-8")
    return bytes(value for value in values if value is not None)


def _byte_alphabet() -> dict[str, int]:
    """Character of each byte in byte-level BPE: printable Latin-1 stands for itself, the rest follows from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in set(printable)]
    alphabet = {chr(value): value for value in printable}
    alphabet.update({chr(256 + position): value for position, value in enumerate(others)})
    return alphabet


def _has_byte_level_decoder(core: tokenizers.Tokenizer) -> bool:
    if core.decoder is None:
        return False
    decoder = json.loads(core.decoder.__getstate__())
    if decoder.get("type") == "Sequence" and len(decoder.get("decoders", [])) == 1:
        decoder = decoder["decoders"][0]
    return bool(decoder.get("type") == "ByteLevel")


_BYTE_OF_CHARACTER = _byte_alphabet()
