"""Where the numbers of a part lie in a stored tensor, and where they go to: sizes and views, nothing is read."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class FileBlock:
    """Rows that follow each other in a file, of each of which the same columns go to a row of `target`."""

    target: Tensor  # [R, ...]
    first_element: int  # of the first row, in the stored tensor
    row_size: int  # elements of a stored row
    columns: tuple[Range, ...] | None = None  # elements of a row that are wanted, joined; None: all

    @property
    def num_rows(self) -> int:
        """Of the target."""
        return len(self.target)

    @property
    def num_held(self) -> int:
        """Elements of a row of the target."""
        return math.prod(self.target.shape[1:])

    def rows(self, start: int, end: int) -> "FileBlock":
        """Some of its rows."""
        first_element = self.first_element + start * self.row_size
        return replace(self, target=self.target[start:end], first_element=first_element)

    def into(self, target: Tensor) -> "FileBlock":
        """The same read into another tensor of the target's shape."""
        return replace(self, target=target)

    def slabs(self, max_rows: int) -> Iterator["FileBlock"]:
        """All of it, so many rows at a time."""
        for start in range(0, self.num_rows, max_rows):
            yield self.rows(start, min(start + max_rows, self.num_rows))


def blocks_of(
    shape: tuple[int, ...], out: Tensor, dim: int | None, ranges: tuple[Range, ...], first_element: int = 0
) -> Iterator[FileBlock]:
    """What the ranges of a stored tensor of this shape along `dim`, joined to `out`, are read as.

    dim None: all of it. A target that is contiguous is a column of single numbers, to be cut anywhere.
    """
    if dim is None or not shape:
        yield _consecutive(out, first_element)
        return
    row_size = math.prod(shape[1:])
    if dim == 0:
        position = 0
        for start, end in ranges:
            if start < end:
                yield _consecutive(out[position : position + end - start], first_element + start * row_size)
            position += end - start
    elif dim == 1:
        inner = math.prod(shape[2:])
        columns = tuple((start * inner, end * inner) for start, end in ranges if start < end)
        yield FileBlock(out, first_element, row_size, columns)
    else:
        for index in range(shape[0]):
            yield from blocks_of(shape[1:], out[index], dim - 1, ranges, first_element + index * row_size)


def _consecutive(target: Tensor, first_element: int) -> FileBlock:
    if target.is_contiguous():
        return FileBlock(target.view(-1), first_element, 1)
    return FileBlock(target, first_element, math.prod(target.shape[1:]))
