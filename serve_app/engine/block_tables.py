"""Which blocks of the KV cache hold each sequence: on the host, and where a backend decodes on the device too."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve_app.types.shards import EngineLimits

IntArray = NDArray[np.int64]


class BlockTables:
    """A row of blocks for each sequence, in the order of its tokens."""

    def __init__(self, limits: EngineLimits, *, keeps_changes: bool = False) -> None:
        """keeps_changes: until `take_changes`, for tables elsewhere."""
        self.blocks = np.zeros((limits.max_num_seqs, limits.max_blocks_per_seq), dtype=np.int64)
        self.num_run_blocks = [0] * limits.max_num_seqs  # how many from the first on lie one after the other
        self._num_held = [0] * limits.max_num_seqs
        self._block_size = limits.block_size
        self._keeps_changes = keeps_changes
        self._changes: dict[int, int] = {}  # blocks by their places in the whole table

    def clear(self, row: int) -> None:
        """Forget a row's blocks."""
        self._num_held[row] = self.num_run_blocks[row] = 0

    def append(self, row: int, blocks: Sequence[int]) -> None:
        """Give a row further blocks."""
        held = self._num_held[row]
        self.blocks[row, held : held + len(blocks)] = blocks
        self._num_held[row] = held + len(blocks)
        if self._keeps_changes:
            first_place = row * self.blocks.shape[1] + held
            self._changes.update(zip(range(first_place, first_place + len(blocks)), blocks, strict=True))
        table, count = self.blocks[row], self.num_run_blocks[row]
        first = int(table[0])
        while count < self._num_held[row] and table[count] == first + count:
            count += 1
        self.num_run_blocks[row] = count

    def blocks_of(self, row: int, num_tokens: int) -> IntArray:
        """The blocks of a row's first tokens."""
        return self.blocks[row, : -(-num_tokens // self._block_size)]

    def take_changes(self) -> tuple[IntArray, IntArray]:
        """What has been appended since it was asked for last: places in the whole table [n], and their blocks [n]."""
        changes, self._changes = self._changes, {}
        size = len(changes)
        places = np.fromiter(changes.keys(), dtype=np.int64, count=size)
        return places, np.fromiter(changes.values(), dtype=np.int64, count=size)

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


class DeviceTables:
    """The same tables on the device, and a row behind them for the padding of captured steps."""

    def __init__(self, limits: EngineLimits, device: torch.device) -> None:
        self.padding_row = limits.max_num_seqs
        self._block_size = limits.block_size
        shape = (limits.max_num_seqs + 1, limits.max_blocks_per_seq)
        self._blocks = torch.zeros(shape, dtype=torch.int64, device=device)
        self._blocks[-1] = limits.num_blocks  # the scratch block, behind the last one

    def write(self, places: Tensor, blocks: Tensor) -> None:
        """Take in what `take_changes` has given, both [n] int64."""
        if len(places):
            self._blocks.view(-1).index_copy_(0, places, blocks)

    def of_rows(self, rows: Tensor, num_tokens: int) -> Tensor:
        """The blocks of the first tokens of rows [B] int64: [B, N] int64; anything behind a row's last block."""
        return self._blocks[:, : -(-num_tokens // self._block_size)].index_select(0, rows)
