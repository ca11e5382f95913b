"""Which KV-cache block belongs to which sequence, and which blocks hold a prefix that others may share.

Automatic prefix caching by hashes of whole blocks, each chained to all before it: vLLM, SOSP 2023, and its design
document "Automatic Prefix Caching". A block that no sequence holds keeps what it has until its memory is needed,
least recently used first.

A sequence gets its blocks one after the other in memory as far as that can be had, so that attention reads them in
place: behind what it takes, as much as it may still need is left to it while there is other room.
"""

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from serve_app.errors import InternalError

_KEY_BYTES = 16
BlockKey = bytes  # of a full block: its tokens and all before it

_ROOM_BLOCKS = 16  # to come, for which prefixes give way
_FREE, _RESERVED, _KEPT, _HELD = 0, 1, 2, 3  # reserved: free, but somebody's next; kept: free, but with a prefix in it


class BlockManager:
    """Gives out and takes back the blocks 0 .. num_blocks - 1 of a paged KV cache."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_free = num_blocks  # blocks that no sequence holds, those that still keep a prefix among them
        self._states = bytearray(num_blocks)
        self._reservations: dict[int, int] = {}  # by the last block of a table: how many behind it are reserved
        self._num_holders = [0] * num_blocks
        self._key_of: dict[int, BlockKey] = {}  # of blocks that can be shared
        self._block_of: dict[BlockKey, int] = {}
        self._kept: dict[int, None] = {}  # least recently used first

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def can_grow(self, block_table: list[int], num_tokens: int) -> bool:
        """Whether a table can be made long enough for `num_tokens` tokens."""
        return self.num_blocks_for(num_tokens) - len(block_table) <= self.num_free

    def grow(self, block_table: list[int], num_tokens: int, num_tokens_to_come: int = 0) -> None:
        """Append blocks to a table until it holds `num_tokens` tokens; so many more may come."""
        num_blocks = self.num_blocks_for(num_tokens) - len(block_table)
        if num_blocks <= 0:
            return
        num_more = self.num_blocks_for(num_tokens + num_tokens_to_come) - len(block_table) - num_blocks
        num_reserved = self._reservations.pop(block_table[-1], 0) if block_table else 0
        while num_blocks and block_table and self._is_free(block_table[-1] + 1):
            self._take(block_table[-1] + 1, block_table)
            num_blocks, num_reserved = num_blocks - 1, num_reserved - 1
        if num_blocks and num_reserved > 0:  # others had to take some of it: the rest is of no use any more
            self._unreserve(block_table[-1] + 1, num_reserved)
            num_reserved = 0
        while num_blocks:
            first, count = self._find_run(num_blocks, num_more)
            for block in range(first, first + count):
                self._take(block, block_table)
            num_blocks -= count
            num_reserved = 0
        if num_reserved <= 0:
            num_reserved = self._reserve(block_table[-1] + 1, num_more)
        self._reservations[block_table[-1]] = num_reserved

    def release(self, block_table: list[int]) -> None:
        """Take a sequence's hold off all blocks of its table and empty it; the end of a prefix is forgotten first."""
        self._release_reservation(block_table)
        for block in reversed(block_table):
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                self.num_free += 1
                self._states[block] = _KEPT if block in self._key_of else _FREE
                if block in self._key_of:
                    self._kept[block] = None
        block_table.clear()

    def is_run(self, block_table: list[int]) -> bool:
        """Whether a table's blocks lie one after the other."""
        return block_table == list(range(block_table[0], block_table[0] + len(block_table)))

    def join(self, block_table: list[int], num_tokens_to_come: int) -> list[tuple[int, int]]:
        """Move a table into one run; gives what is to be copied from where to where, nothing where no run can be had.

        What only this table held moves with its key; what others hold as well stays theirs too.
        """
        num_more = self.num_blocks_for(num_tokens_to_come)
        first, count = self._find_run(len(block_table), num_more)
        if count < len(block_table):
            return []
        self._release_reservation(block_table)
        copies = list(zip(block_table, range(first, first + count), strict=True))
        block_table.clear()
        for old, new in copies:
            self._take(new, block_table)
            self._num_holders[old] -= 1
            if self._num_holders[old] == 0:
                self.num_free += 1
                self._states[old] = _FREE
                if old in self._key_of:
                    self._key_of[new] = key = self._key_of.pop(old)
                    self._block_of[key] = new
        self._reservations[block_table[-1]] = self._reserve(block_table[-1] + 1, num_more)
        return copies

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
                del self._kept[block]
                self._states[block] = _HELD
                self.num_free -= 1
            self._num_holders[block] += 1
            block_table.append(block)

    def share(self, block: int, key: BlockKey) -> None:
        """A held block is full: it can be found by its key from now on, unless another one with it can."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def forget(self, blocks: Iterable[int]) -> None:
        """What these blocks hold cannot be relied on: nobody finds them again."""
        for block in blocks:
            self._drop_key(block)
            if self._states[block] == _KEPT:
                del self._kept[block]
                self._states[block] = _FREE

    def check(self, block_tables: Iterable[list[int]]) -> None:
        """Verify that every block is free, kept or in as many tables as hold it; raises InternalError."""
        num_seen = [0] * self.num_blocks
        for table in block_tables:
            for block in table:
                num_seen[block] += 1
        num_held = self.num_blocks - num_seen.count(0)
        if num_seen != self._num_holders or self._states.count(_HELD) != num_held:
            pairs = list(enumerate(zip(num_seen, self._num_holders, strict=True)))
            lost = [block for block, (seen, holders) in pairs if seen < holders]
            doubled = [block for block, (seen, holders) in pairs if seen > holders]
            raise InternalError(f"KV blocks out of balance: lost={lost[:8]} doubled={doubled[:8]} of {self.num_blocks}")
        if self.num_free != self.num_blocks - num_held:
            raise InternalError(f"KV blocks are counted wrong: {self.num_free} free of {self.num_blocks}")
        if len(self._kept) != self._states.count(_KEPT) or not self._kept.keys() <= self._key_of.keys():
            raise InternalError("KV blocks that keep a prefix are out of balance")
        if len(self._block_of) != len(self._key_of):
            raise InternalError("KV blocks and their keys are out of balance")

    def _is_free(self, block: int) -> bool:
        return block < self.num_blocks and self._states[block] <= _RESERVED

    def _take(self, block: int, block_table: list[int]) -> None:
        self._states[block] = _HELD
        self._num_holders[block] = 1
        self.num_free -= 1
        block_table.append(block)

    def _find_run(self, num_blocks: int, num_more: int) -> tuple[int, int]:
        """First block and length of a free run for `num_blocks` blocks, with room for more behind it, or part of it.

        Prefixes give way for what is needed and a little more, those used longest ago first; not for all that may come.
        """
        for wanted in _halves(num_blocks + num_more, num_blocks + _ROOM_BLOCKS + 1):
            first = self._states.find(bytes(wanted))
            if first >= 0:
                return first, num_blocks
        num_given_up = 0
        for wanted in (num_blocks + min(num_more, _ROOM_BLOCKS), *_halves(num_blocks, 1)):
            while (first := self._states.find(bytes(wanted))) < 0 and self._kept and num_given_up < 2 * wanted:
                self._give_up_oldest()
                num_given_up += 1
            if first >= 0:
                return first, min(wanted, num_blocks)
        first = self._states.find(_RESERVED)
        if first < 0:
            self._give_up_oldest()
            first = self._states.find(_FREE)
        return first, 1

    def _reserve(self, first: int, num_blocks: int) -> int:
        """Mark what is free from `first` on as somebody's next; gives how much it is."""
        end = min(first + num_blocks, self.num_blocks)
        block = first
        while block < end and self._states[block] == _FREE:
            self._states[block] = _RESERVED
            block += 1
        return block - first

    def _release_reservation(self, block_table: list[int]) -> None:
        if block_table:
            self._unreserve(block_table[-1] + 1, self._reservations.pop(block_table[-1], 0))

    def _unreserve(self, first: int, num_blocks: int) -> None:
        for block in range(first, first + num_blocks):
            if self._states[block] == _RESERVED:
                self._states[block] = _FREE

    def _give_up_oldest(self) -> None:
        block = next(iter(self._kept))
        del self._kept[block]
        self._drop_key(block)
        self._states[block] = _FREE

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


def _halves(num_blocks: int, least: int) -> list[int]:
    """A number, half of it, and so on, down to the least."""
    sizes = []
    while num_blocks >= least:
        sizes.append(num_blocks)
        num_blocks //= 2
    return sizes
