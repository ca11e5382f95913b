"""Reading parts of safetensors files straight into parameters.

Plain positioned reads: a memory map would count every page it touches as this process's memory, and a cut along the
inner dimension touches all of them. (Format: https://huggingface.co/docs/safetensors, "Format".)
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.engine.file_blocks import FileBlock, blocks_of
from serve_app.engine.uploads import Uploads, uploads_to
from serve_app.errors import ConfigError
from serve_app.models.torch_dtypes import DTYPES_OF_FILES

_CHUNK_BYTES = 1 << 20  # that are converted, or cut, at a time: they stay in a core's cache
_THREAD_BYTES = 4 << 20  # that are worth a thread
_GAP_BYTES = 32 << 10  # of a row that are read, and thrown away, sooner than its parts one by one
_MAX_COPIED = (1 << 15) - 1  # numbers that torch copies in the thread that asks; for more it starts a team of all
_MAX_THREADS = 4  # one copies 5 GB/s out of the system's file cache; a few fill what memory takes


class TensorReader:
    """Reads tensors of one checkpoint; keeps its files open while in use."""

    def __init__(
        self,
        num_threads: int | None = None,
        make_uploads: Callable[[torch.device], Uploads | None] = uploads_to,
    ) -> None:
        """num_threads: that read a large tensor side by side; None: as many as torch computes with, but a few."""
        self._num_threads = num_threads or min(torch.get_num_threads(), _MAX_THREADS)
        self._make_uploads = make_uploads
        self._descriptors: dict[Path, int] = {}
        self._uploads: dict[torch.device, Uploads | None] = {}
        self._threads = ThreadPoolExecutor(self._num_threads, "rayshard-weights")  # none is started before it is used

    def close(self) -> None:
        """Wait for what is on its way to a device, and close the files."""
        for uploads in self._uploads.values():
            if uploads is not None:
                uploads.finish()
        self._threads.shutdown()
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read(self, header: TensorHeader, out: Tensor, dim: int | None, ranges: tuple[tuple[int, int], ...]) -> None:
        """Fill `out` with the given ranges of a stored tensor along `dim`, joined; with all of it when dim is None.

        out: the shape of the part, any dtype and device; converted where it lies, a piece at a time. On a device it is
        filled for what is asked of the device afterwards.
        """
        if header.dtype not in DTYPES_OF_FILES:
            raise ConfigError(f"a tensor in {header.file} has dtype {header.dtype}, which is not supported")
        if out.numel() == 0:
            return
        if out.device not in self._uploads:
            self._uploads[out.device] = self._make_uploads(out.device)
        uploads = self._uploads[out.device]
        for block in blocks_of(header.shape, out, dim, ranges):
            if uploads is None:
                self._fill(header, block)
            else:
                self._upload(header, block, uploads)

    def _upload(self, header: TensorHeader, block: FileBlock, uploads: Uploads) -> None:
        """Read a buffer's rows at a time, in the file's dtype, each while the last is copied."""
        dtype = DTYPES_OF_FILES[header.dtype]
        for slab in block.slabs(max(1, uploads.buffer_bytes // (block.num_held * dtype.itemsize))):
            staged = uploads.buffer(tuple(slab.target.shape), dtype)
            self._fill(header, slab.into(staged))
            uploads.send(staged, slab.target)

    def _fill(self, header: TensorHeader, block: FileBlock) -> None:
        """Read into memory of the host, by threads where there is much."""
        descriptor = self._descriptor(header.file)
        num_bytes = block.num_rows * block.row_size * DTYPES_OF_FILES[header.dtype].itemsize
        num_shares = min(self._num_threads, -(-num_bytes // _THREAD_BYTES), block.num_rows)
        if num_shares < 2:
            _fill_rows(header, block, descriptor)
            return
        shares = block.slabs(-(-block.num_rows // num_shares))
        is_inference = torch.is_inference_mode_enabled()
        futures = [self._threads.submit(_fill_share, header, share, descriptor, is_inference) for share in shares]
        wait(futures)  # for all of them: where one fails, none shall write any more
        for future in futures:
            future.result()

    def _descriptor(self, path: Path) -> int:
        if path not in self._descriptors:
            self._descriptors[path] = os.open(path, os.O_RDONLY)
        return self._descriptors[path]


def _fill_share(header: TensorHeader, share: FileBlock, descriptor: int, is_inference: bool) -> None:
    """Read a share in a thread of the pool, which does not inherit the mode that the target was made in."""
    with torch.inference_mode(is_inference):
        _fill_rows(header, share, descriptor)


def _fill_rows(header: TensorHeader, block: FileBlock, descriptor: int) -> None:
    """Read a block in this thread."""
    dtype, target = DTYPES_OF_FILES[header.dtype], block.target
    if block.columns is None and target.dtype == dtype and target.is_contiguous():
        _read_into(header, descriptor, _bytes_of(target.view(-1)), block.first_element * dtype.itemsize)
        return
    rows_per_chunk = max(1, _CHUNK_BYTES // (block.row_size * dtype.itemsize))
    is_gathered = (block.row_size - block.num_held) * dtype.itemsize >= _GAP_BYTES
    width = block.num_held if is_gathered else block.row_size
    num_buffered = min(rows_per_chunk, block.num_rows)
    buffer = torch.empty(num_buffered, width, dtype=dtype)
    has_joins = block.columns is not None and len(block.columns) > 1 and not is_gathered
    joined = torch.empty(num_buffered, block.num_held, dtype=dtype) if has_joins else buffer
    for chunk in block.slabs(rows_per_chunk):
        rows = buffer[: chunk.num_rows]
        if is_gathered:
            _gather(header, descriptor, chunk, rows)
        else:
            _read_into(header, descriptor, _bytes_of(rows.view(-1)), chunk.first_element * dtype.itemsize)
        if block.columns is not None and not is_gathered:
            parts = [rows[:, start:end] for start, end in block.columns]
            rows = parts[0] if len(parts) == 1 else _join(parts, joined[: chunk.num_rows])
        _copy(rows.view(chunk.target.shape), chunk.target)


def _join(parts: Sequence[Tensor], out: Tensor) -> Tensor:
    """Columns of rows [R, C] each -> side by side in `out`."""
    for part, held in zip(parts, torch.split(out, [part.shape[1] for part in parts], dim=1), strict=True):
        _copy(part, held)
    return out


def _copy(source: Tensor, target: Tensor) -> None:
    """To a tensor of the same shape in this thread alone: threads that share a tensor would each start a team."""
    if target.numel() <= _MAX_COPIED:
        target.copy_(source)
    elif len(target) == 1:
        _copy(source[0], target[0])
    else:
        num_rows = max(1, _MAX_COPIED * len(target) // target.numel())
        for piece, held in zip(torch.split(source, num_rows), torch.split(target, num_rows), strict=True):
            _copy(piece, held)


def _gather(header: TensorHeader, descriptor: int, chunk: FileBlock, rows: Tensor) -> None:
    """Read the wanted columns of each row and nothing between them."""
    assert chunk.columns is not None, "other rows have no gaps"
    item_bytes = rows.dtype.itemsize
    first, row_bytes = chunk.first_element * item_bytes, chunk.row_size * item_bytes
    # Else a disk would be asked for one small part after the other.
    os.posix_fadvise(descriptor, header.offset_bytes + first, chunk.num_rows * row_bytes, os.POSIX_FADV_WILLNEED)
    target = _bytes_of(rows.view(-1))
    position = 0
    for row in range(chunk.num_rows):
        for start, end in chunk.columns:
            num_bytes = (end - start) * item_bytes
            offset_bytes = first + row * row_bytes + start * item_bytes
            _read_into(header, descriptor, target[position : position + num_bytes], offset_bytes)
            position += num_bytes


def _read_into(header: TensorHeader, descriptor: int, target: memoryview, offset_bytes: int) -> None:
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
