"""Which KV-cache block belongs to which sequence, and which blocks hold a prefix that others may share.

Automatic prefix caching by hashes of whole blocks, each chained to all before it: vLLM, SOSP 2023, and its design
document "Automatic Prefix Caching". A block that no sequence holds keeps what it has until its memory is needed,
least recently used first.
"""

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from serve_app.errors import InternalError

_KEY_BYTES = 16
BlockKey = bytes  # of a full block: its tokens and all before it


class BlockManager:
    """Gives out and takes back the blocks 0 .. num_blocks - 1 of a paged KV cache."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: block 0 goes first, recent blocks are reused
        self._num_holders = [0] * num_blocks
        self._key_of: dict[int, BlockKey] = {}  # of blocks that can be shared
        self._block_of: dict[BlockKey, int] = {}
        self._unheld: dict[int, None] = {}  # blocks with a key that no sequence holds, least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds, those that still keep a prefix among them."""
        return len(self._free) + len(self._unheld)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def can_grow(self, block_table: list[int], num_tokens: int) -> bool:
        """Whether a table can be made long enough for `num_tokens` tokens."""
        return self.num_blocks_for(num_tokens) - len(block_table) <= self.num_free

    def grow(self, block_table: list[int], num_tokens: int) -> None:
        """Append blocks to a table until it holds `num_tokens` tokens."""
        num_blocks = self.num_blocks_for(num_tokens) - len(block_table)
        blocks = [self._free.pop() for _ in range(min(num_blocks, len(self._free)))]
        blocks += sorted(self._forget_oldest() for _ in range(num_blocks - len(blocks)))  # in as few runs as can be
        for block in blocks:
            self._num_holders[block] = 1
        block_table += blocks

    def release(self, block_table: list[int]) -> None:
        """Take a sequence's hold off all blocks of its table and empty it; the end of a prefix is forgotten first."""
        for block in reversed(block_table):
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                if block in self._key_of:
                    self._unheld[block] = None
                else:
                    self._free.append(block)
        block_table.clear()

    def find(self, keys: Sequence[BlockKey]) -> list[int]:
        """Blocks that hold the longest known prefix. They are not held: `hold` them before any other call."""
        found: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def num_unheld(self, blocks: Iterable[int]) -> int:
        """How many of these blocks count as free until they are held."""
        return sum(self._num_holders[block] == 0 for block in blocks)

    def hold(self, block_table: list[int], blocks: Iterable[int]) -> None:
        """Append blocks that were found to a table."""
        for block in blocks:
            if self._num_holders[block] == 0:
                del self._unheld[block]
            self._num_holders[block] += 1
            block_table.append(block)

    def share(self, block: int, key: BlockKey) -> None:
        """A held block is full: it can be found by its key from now on, unless another one with it can."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def forget(self, block_table: Iterable[int]) -> None:
        """What these held blocks hold cannot be relied on: nobody finds them again."""
        for block in block_table:
            self._drop_key(block)

    def check(self, block_tables: Iterable[list[int]]) -> None:
        """Verify that every block is free, unheld or in as many tables as hold it; raises InternalError."""
        num_seen, num_idle = [0] * self.num_blocks, [0] * self.num_blocks
        for table in block_tables:
            for block in table:
                num_seen[block] += 1
        for block in (*self._free, *self._unheld):
            num_idle[block] += 1
        lost = [block for block, pair in enumerate(zip(num_seen, num_idle, strict=True)) if pair == (0, 0)]
        doubled = [
            block
            for block, num_holders in enumerate(self._num_holders)
            if num_seen[block] + num_idle[block] > max(1, num_holders) or (num_seen[block] and num_idle[block])
        ]
        if lost or doubled:
            raise InternalError(f"KV blocks out of balance: lost={lost[:8]} doubled={doubled[:8]} of {self.num_blocks}")
        if self._block_of != {key: block for block, key in self._key_of.items()}:
            raise InternalError("KV blocks and their keys are out of balance")
        if not self._unheld.keys() <= self._key_of.keys():
            raise InternalError("a KV block without a key is kept")

    def _forget_oldest(self) -> int:
        block = next(iter(self._unheld))
        del self._unheld[block]
        self._drop_key(block)
        return block

    def _drop_key(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]


def extend_keys(keys: list[BlockKey], token_ids: Sequence[int], num_blocks: int, block_size: int, salt: str) -> None:
    """Append the keys of a sequence's first `num_blocks` blocks that are not in `keys` yet.

    A key is a BLAKE2b of the block's tokens under the key of the block before it, or under a digest of the salt.
    """
    previous = keys[-1] if keys else blake2b(salt.encode(), digest_size=_KEY_BYTES, person=b"salt").digest()
    for index in range(len(keys), num_blocks):
        tokens = array("q", token_ids[index * block_size : (index + 1) * block_size])
        previous = blake2b(tokens.tobytes(), key=previous, digest_size=_KEY_BYTES).digest()
        keys.append(previous)
