"""The beginnings of a prompt by their hashes, as a backend tells them apart: no tokens are kept."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

_KEY_BYTES = 16
_NUM_DENSE = 128  # so many blocks have a mark each; marks behind them lie 1/128 to 1/64 of their place apart
_HOME_BLOCKS = 16  # of a prompt without a session: its home is known by them


@dataclass(frozen=True, slots=True)
class Marks:
    """Where hashes of a prompt's beginning were taken, the shortest first; each is of whole blocks."""

    keys: list[bytes]  # of all tokens before the mark, and of the salt
    ends: list[int]  # in blocks


@dataclass(frozen=True)
class RoutedPrompt:
    """What the choice of a copy needs of a request; hashed when it is first asked for, and once.

    salt: whose cache it may use; prompts of two salts have no key in common.
    """

    token_ids: Sequence[int]
    block_size: int  # tokens
    salt: str = ""
    session: str = ""  # of the conversation that it belongs to; "": not told

    @property
    def num_tokens(self) -> int:
        """Of the whole prompt."""
        return len(self.token_ids)

    @cached_property
    def marks(self) -> Marks:
        """Of the blocks that a cache may spare: the last token is always computed."""
        num_blocks = (len(self.token_ids) - 1) // self.block_size
        ends = mark_ends(num_blocks)
        if not ends:
            return Marks([], [])
        tokens = memoryview(array("q", self.token_ids)).cast("B")
        block_bytes = 8 * self.block_size
        running = blake2b(key=self._digest("salt", ""), digest_size=_KEY_BYTES)
        keys, start = [], 0
        for end in ends:
            running.update(tokens[start * block_bytes : end * block_bytes])
            keys.append(running.copy().digest())
            start = end
        return Marks(keys, ends)

    @cached_property
    def session_key(self) -> bytes:
        """Of the conversation, under the salt; empty: none is told."""
        return self._digest("session", self.session) if self.session else b""

    @property
    def home_key(self) -> bytes:
        """By which backends that know nothing of each other choose one copy; empty: there is nothing to go by."""
        keys = self.marks.keys[:_HOME_BLOCKS]
        return self.session_key or (keys[-1] if keys else b"")

    def _digest(self, kind: str, text: str) -> bytes:
        """Of a text under the salt, whatever characters they have."""
        salt = blake2b(self.salt.encode(errors="surrogatepass"), digest_size=_KEY_BYTES).digest()
        person = kind.encode()
        return blake2b(text.encode(errors="surrogatepass"), key=salt, digest_size=_KEY_BYTES, person=person).digest()


def mark_ends(num_blocks: int) -> list[int]:
    """Where the marks of so many blocks lie: the same for every prompt, and not many more for a longer one."""
    ends = list(range(1, min(num_blocks, _NUM_DENSE) + 1))
    end, step = _NUM_DENSE, 2
    while (end := end + step) <= num_blocks:
        ends.append(end)
        if end == _NUM_DENSE * step:
            step *= 2
    return ends
