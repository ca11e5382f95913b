"""Reading parts of safetensors files straight into parameters.

Plain positioned reads: a memory map would count every page it touches as this process's memory, and a cut along the
inner dimension touches all of them. (Format: https://huggingface.co/docs/safetensors, "Format".)
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.errors import ConfigError
from serve_app.models.torch_dtypes import DTYPES_OF_FILES

_CHUNK_BYTES = 1 << 20


class TensorReader:
    """Reads tensors of one checkpoint; keeps its files open while in use."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read(self, header: TensorHeader, out: Tensor, dim: int | None, ranges: tuple[tuple[int, int], ...]) -> None:
        """Fill `out` with the given ranges of a stored tensor along `dim`, joined; with all of it when dim is None.

        out: the shape of the part, any dtype and device; converted while reading, 1 MiB at a time.
        """
        if header.dtype not in DTYPES_OF_FILES:
            raise ConfigError(f"a tensor in {header.file} has dtype {header.dtype}, which is not supported")
        if out.numel() == 0:
            return
        if dim is None or len(header.shape) == 0:
            self._read_rows(header, out, 0)
        elif dim == 0:
            position = 0
            row_size = math.prod(header.shape[1:])
            for start, end in ranges:
                self._read_rows(header, out[position : position + end - start], start * row_size)
                position += end - start
        else:
            self._read_columns(header, out, dim, ranges)

    def _read_rows(self, header: TensorHeader, out: Tensor, first_element: int) -> None:
        """Fill `out` (any shape) with consecutive elements."""
        dtype = DTYPES_OF_FILES[header.dtype]
        flat = out.view(-1) if out.is_contiguous() else None
        if flat is not None and out.dtype == dtype and out.device.type == "cpu":
            if flat.numel():
                self._read_into(header, _bytes_of(flat), first_element * dtype.itemsize)
            return
        position = 0
        rows = out if flat is None else flat
        row_size = math.prod(rows.shape[1:])
        for count, chunk in self._chunks(header, first_element, rows.shape[0], row_size):
            rows[position : position + count].copy_(chunk.view(count, *rows.shape[1:]))
            position += count

    def _read_columns(self, header: TensorHeader, out: Tensor, dim: int, ranges: tuple[tuple[int, int], ...]) -> None:
        row_size = math.prod(header.shape[1:])
        position = 0
        for count, chunk in self._chunks(header, 0, header.shape[0], row_size):
            rows = chunk.view(count, *header.shape[1:])
            parts = [rows.narrow(dim, start, end - start) for start, end in ranges]
            out[position : position + count].copy_(parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim))
            position += count

    def _chunks(
        self, header: TensorHeader, first_element: int, num_rows: int, row_size: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Consecutive rows, at most 1 MiB (or one row) at a time; each chunk is overwritten by the next."""
        dtype = DTYPES_OF_FILES[header.dtype]
        rows_per_chunk = max(1, _CHUNK_BYTES // max(1, row_size * dtype.itemsize))
        buffer = torch.empty(min(rows_per_chunk, num_rows) * row_size, dtype=dtype)
        for start in range(0, num_rows, rows_per_chunk):
            count = min(rows_per_chunk, num_rows - start)
            chunk = buffer[: count * row_size]
            if chunk.numel():
                offset_bytes = (first_element + start * row_size) * dtype.itemsize
                self._read_into(header, _bytes_of(chunk), offset_bytes)
            yield count, chunk

    def _read_into(self, header: TensorHeader, target: memoryview, offset_bytes: int) -> None:
        descriptor = self._descriptors.get(header.file)
        if descriptor is None:
            descriptor = self._descriptors[header.file] = os.open(header.file, os.O_RDONLY)
        offset_bytes += header.offset_bytes
        while target:
            num_read = os.preadv(descriptor, [target], offset_bytes)
            if num_read == 0:
                raise ConfigError(f"{header.file} is shorter than its header says; download it again", field="source")
            target = target[num_read:]
            offset_bytes += num_read


def _bytes_of(flat: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor [N]."""
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # an ndarray is a buffer


@contextmanager
def tensor_reader() -> Iterator[TensorReader]:
    """A TensorReader that closes its files."""
    reader = TensorReader()
    try:
        yield reader
    finally:
        reader.close()
