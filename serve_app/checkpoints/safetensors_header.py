"""The header of a safetensors file: which tensors it holds and where, checked to the byte.

(Format: https://huggingface.co/docs/safetensors, "Format".)
"""

import math
from dataclasses import dataclass
from pathlib import Path

from serve_app.checkpoints.checkpoint_json import damaged, is_count, parse_json, shown
from serve_app.types.dtypes import DTYPES_BY_CODE

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_TENSORS = 100_000


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor of a safetensors file."""

    file: Path
    dtype: str  # as safetensors writes it: F32, BF16, ...
    shape: tuple[int, ...]
    num_bytes: int
    offset_bytes: int  # of its first byte in the file

    @property
    def num_elements(self) -> int:
        """Numbers that it holds."""
        return math.prod(self.shape)


def read_safetensors_header(path: Path) -> dict[str, TensorHeader]:
    """The tensors of one file. Raises ConfigError unless header and file agree to the byte."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little") if file_bytes >= 8 else -1
        if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
            raise damaged(path, f"a header of {header_bytes} bytes in a file of {file_bytes}")
        header = parse_json(file.read(header_bytes), path)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise damaged(path, f"{len(header)} tensors, more than {MAX_TENSORS}")
    data_bytes = file_bytes - 8 - header_bytes
    tensors: dict[str, TensorHeader] = {}
    end = 0
    for placed in sorted((_place(path, 8 + header_bytes, name, entry) for name, entry in header.items()), key=_order):
        if placed.begin != end or placed.end - placed.begin != placed.tensor.num_bytes or placed.end > data_bytes:
            raise damaged(path, f"tensor {shown(placed.name)} at bytes {placed.begin} to {placed.end} of {data_bytes}")
        tensors[placed.name] = placed.tensor
        end = placed.end
    if end != data_bytes:
        raise damaged(path, f"{data_bytes - end} bytes that belong to no tensor")
    return tensors


@dataclass(frozen=True, slots=True)
class _Placed:
    name: str
    tensor: TensorHeader
    begin: int  # byte offsets in the file's data
    end: int


def _order(placed: _Placed) -> tuple[int, int]:
    return placed.begin, placed.end


def _place(path: Path, data_start_bytes: int, name: str, entry: object) -> _Placed:
    if not isinstance(entry, dict):
        raise damaged(path, f"no description of tensor {shown(name)}")
    offsets, dtype, shape = entry.get("data_offsets"), entry.get("dtype"), entry.get("shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(offset) for offset in offsets):
        raise damaged(path, f"data_offsets {shown(offsets)} of tensor {shown(name)}")
    if not isinstance(dtype, str) or dtype not in DTYPES_BY_CODE:
        raise damaged(path, f"dtype {shown(dtype)} of tensor {shown(name)}")
    if not isinstance(shape, list) or len(shape) > 16 or not all(is_count(size) for size in shape):
        raise damaged(path, f"shape {shown(shape)} of tensor {shown(name)}")
    num_bytes = math.prod(shape) * DTYPES_BY_CODE[dtype].bits // 8
    tensor = TensorHeader(path, dtype, tuple(shape), num_bytes, data_start_bytes + offsets[0])
    return _Placed(name, tensor, offsets[0], offsets[1])
