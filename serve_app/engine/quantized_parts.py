"""What a rank has to read of the tensors that a quantized weight is stored in; sizes and ranges alone, no tensors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.engine.packed_words import Packing
from serve_app.parallel.tensor_parallel import Part, Range
from serve_app.types.shards import WeightScheme

Ranges = tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Entries:
    """What a rank reads of numbers that several rows or columns share, and which of them it needs where."""

    ranges: Ranges  # read, and joined
    index: tuple[int, ...]  # of what was read: the one of each row, or of each of the rank's groups of columns

    @property
    def is_as_read(self) -> bool:
        """Whether they are needed as they were read."""
        return self.index == tuple(range(length_of(self.ranges)))


@dataclass(frozen=True, slots=True)
class WeightPart:
    """A rank's part of a matrix [N, K] and of what stands beside it: ranges of each, all of it where it is not cut."""

    rows: Ranges
    columns: Ranges
    row_blocks: Entries | None  # the rows of scales; None: a row has scales of its own
    groups: Entries  # the columns of scales and zero points

    @property
    def scale_rows(self) -> Ranges:
        """The rows of scales that are read."""
        return self.rows if self.row_blocks is None else self.row_blocks.ranges


@dataclass(frozen=True, slots=True)
class Layout:
    """How a matrix lies in a stored tensor."""

    is_transposed: bool = False
    packed_dim: int = 1  # of the matrix: along which numbers share words
    packing: Packing | None = None  # None: one element a number


@dataclass(frozen=True, slots=True)
class Reading:
    """What to read of a stored tensor: ranges of elements along `dim`, joined; all of it when dim is None."""

    shape: tuple[int, ...]  # of the whole tensor
    dim: int | None = None
    ranges: Ranges = ()

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Of what is read."""
        return tuple(length_of(self.ranges) if dim == self.dim else size for dim, size in enumerate(self.shape))


def length_of(ranges: Ranges) -> int:
    """Elements in all of them."""
    return sum(end - start for start, end in ranges)


def weight_part(scheme: WeightScheme, shape: Sequence[int], part: Part) -> WeightPart:
    """The ranges of a matrix of this whole shape that a rank holds, and those of the scales that they need.

    All groups of a part are of one size: where it is cut within a group, or the last group of the whole is shorter,
    each is made as small as fits.
    """
    num_rows, num_columns = shape
    rows = part.ranges if part.dim == 0 else ((0, num_rows),)
    columns = part.ranges if part.dim == 1 else ((0, num_columns),)
    size = scheme.group_size
    groups = Entries(((0, 1),), (0,))
    if size is not None and size < num_columns:
        step = math.gcd(size, num_columns, *(edge for edges in columns for edge in edges))
        groups = _entries(columns, size, step)
    row_blocks = None if scheme.block_rows is None else _entries(rows, scheme.block_rows, 1)
    return WeightPart(rows, columns, row_blocks, groups)


def _entries(ranges: Ranges, size: int, step: int) -> Entries:
    """Of entries that `size` positions share each: the one of every `step`-th position in the ranges."""
    read: list[Range] = []
    index: list[int] = []
    num_read = 0
    for start, end in ranges:
        first, last = start // size, (end - 1) // size + 1
        if start == end:
            continue
        read.append((first, last))
        index += [num_read + position // size - first for position in range(start, end, step)]
        num_read += last - first
    return Entries(tuple(read), tuple(index))


def reading_of(layout: Layout, size: tuple[int, int], rows: Ranges, columns: Ranges) -> Reading:
    """What to read for a part of a matrix of this whole size, which is cut along one dimension at most.

    Where numbers share words, it is the words that hold a range of them.
    """
    lengths, parts = list(size), [rows, columns]
    if layout.packing is not None:
        lengths[layout.packed_dim] = layout.packing.num_words(size[layout.packed_dim])
        parts[layout.packed_dim] = word_ranges(layout.packing, parts[layout.packed_dim])
    cut = [dim for dim in (0, 1) if parts[dim] != ((0, lengths[dim]),)]
    assert len(cut) < 2, "a rank's part is cut along one dimension"
    shape = (lengths[1], lengths[0]) if layout.is_transposed else (lengths[0], lengths[1])
    if not cut:
        return Reading(shape)
    return Reading(shape, 1 - cut[0] if layout.is_transposed else cut[0], parts[cut[0]])


def word_ranges(packing: Packing, ranges: Ranges) -> Ranges:
    """The words that hold each of several ranges of numbers."""
    return tuple(packing.words_of(numbers) for numbers in ranges)
