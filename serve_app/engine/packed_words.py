"""Numbers of a few bits in words of 32: which words hold a range of them, and their unpacking in little memory."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from serve_app.checkpoints.stored_weights import WORD_BITS
from serve_app.parallel.tensor_parallel import Range

_WORD_BYTES = WORD_BITS // 8
_SLICE_NUMBERS = 1 << 18  # that are unpacked at a time: temporaries of 2 to 3 bytes each stay in the cores' caches
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs each nibble of a word holds, from the lowest


@dataclass(frozen=True, slots=True)
class Packing:
    """How numbers lie in a stream of little-endian words: a pattern of whole bytes that repeats."""

    bits: int  # of a number, at most 8
    pattern_bytes: int
    firsts: tuple[int, ...]  # the bit of a pattern at which each of its numbers begins

    def words_of(self, numbers: Range) -> Range:
        """The words that hold the numbers [start, end)."""
        start, end = numbers
        if start == end:
            return (0, 0)
        return self._first_bit(start) // WORD_BITS, (self._first_bit(end - 1) + self.bits - 1) // WORD_BITS + 1

    def num_words(self, count: int) -> int:
        """Words of so many numbers."""
        return self.words_of((0, count))[1]

    def _first_bit(self, number: int) -> int:
        pattern, place = divmod(number, len(self.firsts))
        return 8 * self.pattern_bytes * pattern + self.firsts[place]


def stream_packing(bits: int, *, is_dense: bool = True) -> Packing:
    """One number after the other, from the lowest bit; dense: a number may cross from one word into the next."""
    if is_dense:
        pattern_bits = math.lcm(bits, 8)
        return Packing(bits, pattern_bits // 8, tuple(range(0, pattern_bits, bits)))
    return Packing(bits, _WORD_BYTES, tuple(bits * place for place in range(WORD_BITS // bits)))


AWQ_PACKING = Packing(4, _WORD_BYTES, tuple(4 * _AWQ_ORDER.index(number) for number in range(8)))


def unpack(words: Tensor, packing: Packing, numbers: Range, out: Tensor) -> None:
    """Write the numbers [start, end) of each row into `out`.

    words [R, W] int32, of any strides: those that `packing.words_of(numbers)` names; out [R, end - start] uint8, of any
    strides.
    """
    start, end = numbers
    if start == end:
        return
    per_pattern = len(packing.firsts)
    first_pattern = start // per_pattern
    num_patterns = -(-end // per_pattern) - first_pattern
    # Words begin and end elsewhere than patterns: bytes that are missing belong to numbers that are not wanted.
    before = packing.pattern_bytes * first_pattern - _WORD_BYTES * packing.words_of(numbers)[0]
    after = packing.pattern_bytes * num_patterns - _WORD_BYTES * words.shape[1] + before
    skipped = start - first_pattern * per_pattern
    rows_per_slice = max(1, _SLICE_NUMBERS // (num_patterns * per_pattern))
    for row in range(0, len(words), rows_per_slice):
        rows = words[row : row + rows_per_slice]
        stored = torch.empty(rows.shape, dtype=torch.int32).copy_(rows).view(torch.uint8)  # [r, 4 W]
        if before or after:
            stored = functional.pad(stored, (-before, after))
        unpacked = _unpack_patterns(stored.reshape(len(stored), num_patterns, packing.pattern_bytes), packing)
        out[row : row + rows_per_slice] = unpacked.flatten(1)[:, skipped : skipped + end - start]


def _unpack_patterns(patterns: Tensor, packing: Packing) -> Tensor:
    """patterns [r, P, bytes] uint8 -> numbers [r, P, numbers of one] uint8."""
    numbers = torch.empty(*patterns.shape[:2], len(packing.firsts), dtype=torch.uint8)
    for place, first in enumerate(packing.firsts):
        index, shift = divmod(first, 8)
        number = patterns[:, :, index] >> shift
        if shift + packing.bits > 8:
            number |= patterns[:, :, index + 1] << (8 - shift)  # what is shifted out is of the next number
        torch.bitwise_and(number, 2**packing.bits - 1, out=numbers[:, :, place])
    return numbers
