"""Which blocks of the KV cache hold each sequence, on the host."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve_app.types.shards import EngineLimits

IntArray = NDArray[np.int64]


class BlockTables:
    """A row of blocks for each sequence, in the order of its tokens."""

    def __init__(self, limits: EngineLimits) -> None:
        self.blocks = np.zeros((limits.max_num_seqs, limits.max_blocks_per_seq), dtype=np.int64)
        self.num_run_blocks = [0] * limits.max_num_seqs  # how many from the first on lie one after the other
        self._num_held = [0] * limits.max_num_seqs
        self._block_size = limits.block_size

    def clear(self, row: int) -> None:
        """Forget a row's blocks."""
        self._num_held[row] = self.num_run_blocks[row] = 0

    def append(self, row: int, blocks: Sequence[int]) -> None:
        """Give a row further blocks."""
        held = self._num_held[row]
        self.blocks[row, held : held + len(blocks)] = blocks
        self._num_held[row] = held + len(blocks)
        table, count = self.blocks[row], self.num_run_blocks[row]
        first = int(table[0])
        while count < self._num_held[row] and table[count] == first + count:
            count += 1
        self.num_run_blocks[row] = count

    def blocks_of(self, row: int, num_tokens: int) -> IntArray:
        """The blocks of a row's first tokens."""
        return self.blocks[row, : -(-num_tokens // self._block_size)]

    def of_rows(self, rows: IntArray, num_tokens: int) -> IntArray:
        """The blocks of several rows' first tokens: [B, N]; anything behind a row's last block."""
        blocks: IntArray = self.blocks[rows, : -(-num_tokens // self._block_size)]
        return blocks

    def first_slot(self, row: int, num_tokens: int) -> int | None:
        """Where a row's first tokens begin; None unless their blocks lie one after the other."""
        if -(-num_tokens // self._block_size) > self.num_run_blocks[row]:
            return None
        return int(self.blocks[row, 0]) * self._block_size

    def slots(self, rows: IntArray, positions: IntArray) -> IntArray:
        """The slot of each row's token at a position; both [T] -> [T]."""
        size = self._block_size
        slots: IntArray = self.blocks[rows, positions // size] * size + positions % size
        return slots
