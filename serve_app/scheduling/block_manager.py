"""Which KV-cache block belongs to which sequence: plain integers."""

from collections.abc import Iterable

from serve_app.errors import InternalError


class BlockManager:
    """Gives out and takes back the blocks 0 .. num_blocks - 1 of a paged KV cache."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: block 0 goes first, recent blocks are reused

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def can_grow(self, block_table: list[int], num_tokens: int) -> bool:
        """Whether a table can be made long enough for `num_tokens` tokens."""
        return self.num_blocks_for(num_tokens) - len(block_table) <= len(self._free)

    def grow(self, block_table: list[int], num_tokens: int) -> None:
        """Append blocks to a table until it holds `num_tokens` tokens."""
        for _ in range(self.num_blocks_for(num_tokens) - len(block_table)):
            block_table.append(self._free.pop())

    def release(self, block_table: list[int]) -> None:
        """Take all blocks of a table back and empty it."""
        self._free.extend(reversed(block_table))
        block_table.clear()

    def check(self, block_tables: Iterable[list[int]]) -> None:
        """Verify that free and used blocks are all blocks, each once; raises InternalError."""
        seen = bytearray(self.num_blocks)
        for table in (self._free, *block_tables):
            for block in table:
                seen[block] += 1
        if any(count != 1 for count in seen):
            lost = [block for block, count in enumerate(seen) if count == 0]
            doubled = [block for block, count in enumerate(seen) if count > 1]
            raise InternalError(f"KV blocks out of balance: lost={lost[:8]} doubled={doubled[:8]} of {self.num_blocks}")
