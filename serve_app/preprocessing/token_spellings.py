"""What each token of a vocabulary adds to a text: what a grammar reads them as."""

import random
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import tokenizers

from serve_app.errors import ConfigError
from serve_app.preprocessing.token_table import TokenTable

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NUM_CHECKED_PAIRS = 200
_CHANGING = "this model's tokenizer writes a token in other ways beside others; answers cannot be held to a grammar"


def token_spellings(core: tokenizers.Tokenizer, table: TokenTable, num_tokens: int) -> list[bytes]:
    """UTF-8 bytes that each of the first ids adds to a text that has begun; empty for an id without a token.

    Raises ConfigError where a token changes what is before it.
    """
    if table.is_byte_level:
        return [table.bytes_of(token_id) for token_id in range(num_tokens)]
    return _Speller(core, table).spellings(range(num_tokens))


def check_spellings(core: tokenizers.Tokenizer, table: TokenTable) -> None:
    """Raises ConfigError where what a token adds to a text depends on those beside it, as far as samples show."""
    if table.is_byte_level:
        return
    speller = _Speller(core, table)
    chooser = random.Random(0)
    num_tokens = core.get_vocab_size(with_added_tokens=True)
    token_ids = [chooser.randrange(num_tokens) for _ in range(2 * _NUM_CHECKED_PAIRS)]
    token_ids = [one for one in token_ids if one not in table.special_token_ids and core.id_to_token(one) is not None]
    plain = [pair for pair in zip(token_ids, speller.spellings(token_ids), strict=True) if _is_text(pair[1])]
    for (first, first_bytes), (second, second_bytes) in pairwise(plain):
        if _decode(core, [speller.anchor, first, second]).encode() != speller.start + first_bytes + second_bytes:
            raise ConfigError(_CHANGING, field="source")


class _Speller:
    """Takes tokens apart from a plain word that stands before them."""

    def __init__(self, core: tokenizers.Tokenizer, table: TokenTable) -> None:
        self._core = core
        self._has_byte_tokens = core.decoder is not None and b'"ByteFallback"' in core.decoder.__getstate__()
        self.anchor = next((one for one in self._plain_ids(table) if _decode(core, [one]).strip().isalnum()), -1)
        if self.anchor < 0:
            raise ConfigError("no token of this model is a plain word; its answers cannot be held to a grammar")
        self.start = _decode(core, [self.anchor]).encode()

    def spellings(self, token_ids: Sequence[int]) -> list[bytes]:
        """Bytes of each."""
        together = [[self.anchor, token_id] for token_id in token_ids]
        texts = self._core.decode_batch(together, skip_special_tokens=False)
        return [self._spelling(token_id, text.encode()) for token_id, text in zip(token_ids, texts, strict=True)]

    def _spelling(self, token_id: int, text: bytes) -> bytes:
        token = self._core.id_to_token(token_id)
        if token is None:
            return b""
        byte_token = _BYTE_TOKEN.fullmatch(token) if self._has_byte_tokens else None
        if byte_token:
            return bytes([int(byte_token[1], 16)])
        if not text.startswith(self.start):
            raise ConfigError(_CHANGING, field="source")
        return text[len(self.start) :]

    def _plain_ids(self, table: TokenTable) -> Iterator[int]:
        for token_id in range(self._core.get_vocab_size(with_added_tokens=True)):
            if token_id not in table.special_token_ids:
                yield token_id


def _is_text(spelling: bytes) -> bool:
    return bool(spelling) and "\ufffd" not in spelling.decode(errors="replace")


def _decode(core: tokenizers.Tokenizer, token_ids: list[int]) -> str:
    text: str = core.decode(token_ids, skip_special_tokens=False)
    return text
