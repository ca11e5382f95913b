"""Parts of safetensors files read straight into tensors, whatever the borders of the chunks are."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.checkpoints.safetensors_header import TensorHeader, read_safetensors_header
from serve_app.engine import tensor_file
from serve_app.engine.tensor_file import TensorReader
from serve_app.errors import ConfigError

Ranges = tuple[tuple[int, int], ...]


@pytest.fixture(params=[1, 40, 96, 1 << 20], ids=lambda size: f"chunks of {size} bytes")
def _chunk_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_CHUNK_BYTES", request.param)


@pytest.fixture(params=[1, 1 << 20], ids=lambda size: f"gaps of {size} bytes")
def _gap_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_GAP_BYTES", request.param)


@pytest.fixture(params=[16, 1 << 20], ids=lambda size: f"threads of {size} bytes")
def _thread_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_THREAD_BYTES", request.param)
    monkeypatch.setattr(tensor_file, "_MAX_COPIED", request.param // 4)


def store(directory: Path, tensor: Tensor) -> TensorHeader:
    """A file in which the tensor is not the first."""
    path = directory / "model.safetensors"
    save_file({"a": torch.arange(7, dtype=torch.uint8), "tensor": tensor}, path)
    return read_safetensors_header(path)["tensor"]


def read(header: TensorHeader, out: Tensor, dim: int | None, ranges: Ranges, num_threads: int = 3) -> Tensor:
    reader = TensorReader(num_threads)
    try:
        reader.read(header, out, dim, ranges)
    finally:
        reader.close()
    return out


def part_of(tensor: Tensor, dim: int | None, ranges: Ranges) -> Tensor:
    if dim is None:
        return tensor
    return torch.cat([tensor.narrow(dim, start, end - start) for start, end in ranges], dim)


PARTS: list[tuple[tuple[int, ...], int | None, Ranges]] = [
    ((13, 6), None, ()),
    ((13, 6), 0, ((3, 11),)),
    ((13, 6), 0, ((0, 2), (5, 6), (12, 13))),
    ((13, 6), 1, ((1, 4),)),
    ((13, 6), 1, ((0, 1), (3, 5))),
    ((5, 4, 3), 1, ((2, 4),)),
    ((5, 4, 3), 2, ((0, 1), (2, 3))),
    ((9,), 0, ((2, 7),)),
    ((13, 6), 0, ((4, 4),)),
    ((13, 6), 1, ((2, 2),)),
]


@pytest.mark.usefixtures("_chunk_bytes", "_gap_bytes", "_thread_bytes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("shape", "dim", "ranges"), PARTS)
def test_any_part_is_read_as_it_is_stored(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...], dim: int | None, ranges: Ranges
) -> None:
    stored = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = part_of(stored, dim, ranges).to(dtype)
    got = read(store(tmp_path, stored), torch.full_like(expected, torch.nan), dim, ranges)
    assert torch.equal(got, expected)


def test_what_lies_between_columns_is_read_where_it_is_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    header, counts, preadv = store(tmp_path, stored), [], os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        counts.append(preadv(descriptor, buffers, offset))
        return counts[-1]

    monkeypatch.setattr(os, "preadv", counted)
    for gap_bytes, expected in ((320, 8 * 20 * 4), (321, 8 * 100 * 4)):  # 80 of 100 numbers are not wanted
        monkeypatch.setattr(tensor_file, "_GAP_BYTES", gap_bytes)
        counts.clear()
        read(header, torch.empty(8, 20), 1, ((5, 10), (40, 55)))
        assert sum(counts) == expected


@pytest.mark.usefixtures("_chunk_bytes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dim", "ranges"), [(None, ()), (0, ((2, 7),)), (1, ((1, 4),))])
def test_a_part_goes_into_a_slice_of_a_tensor_and_nowhere_else(
    tmp_path: Path, dtype: torch.dtype, dim: int | None, ranges: Ranges
) -> None:
    stored = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    expected = part_of(stored, dim, ranges).to(dtype)
    whole = torch.zeros(expected.shape[0], expected.shape[1] + 3, dtype=dtype)
    read(store(tmp_path, stored), whole[:, 2 : 2 + expected.shape[1]], dim, ranges)
    assert torch.equal(whole[:, 2:-1], expected)
    assert whole[:, :2].count_nonzero() == 0
    assert whole[:, -1].count_nonzero() == 0


@pytest.mark.parametrize(
    ("shape", "dim", "ranges"),
    [((300, 300), None, ()), ((9, 40_000), 1, ((0, 39_000),)), ((9, 40_000), 1, ((0, 1), (2, 39_001)))],
)
def test_no_copy_is_so_large_that_torch_starts_threads_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dim: int | None, ranges: Ranges
) -> None:
    stored = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = part_of(stored, dim, ranges).to(torch.bfloat16)
    header, counts, copy = store(tmp_path, stored), [], torch.Tensor.copy_

    def counted(target: Tensor, source: Tensor) -> Tensor:
        counts.append(target.numel())
        return copy(target, source)

    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    got = read(header, torch.empty(expected.shape, dtype=torch.bfloat16), dim, ranges)
    assert torch.equal(got, expected)
    assert 0 < max(counts) < 32_768  # at::internal::GRAIN_SIZE
    assert sum(counts) >= expected.numel()


def test_threads_fill_tensors_of_inference_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_THREAD_BYTES", 16)
    stored = torch.randn(13, 6, generator=torch.Generator().manual_seed(0))
    header = store(tmp_path, stored)
    with torch.inference_mode():
        got = read(header, torch.empty(13, 6, dtype=torch.bfloat16), None, ())
        assert torch.equal(got, stored.to(torch.bfloat16))


def test_a_number_without_dimensions_is_read(tmp_path: Path) -> None:
    header = store(tmp_path, torch.tensor(2.5))
    assert read(header, torch.zeros(()), 0, ((0, 1),)).item() == 2.5
    assert read(header, torch.zeros((), dtype=torch.bfloat16), None, ()).item() == 2.5


@pytest.mark.usefixtures("_thread_bytes")
def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    header = store(tmp_path, torch.ones(100))
    with header.file.open("r+b") as file:
        file.truncate(header.offset_bytes + 100)
    with pytest.raises(ConfigError, match=r"model\.safetensors is shorter than its header says"):
        read(header, torch.empty(100), None, ())


def test_a_dtype_without_a_meaning_here_is_named_with_its_file(tmp_path: Path) -> None:
    header = TensorHeader(tmp_path / "model.safetensors", "F8_E5M2", (4,), 4, 8)
    with pytest.raises(ConfigError, match=r"model\.safetensors has dtype F8_E5M2"):
        read(header, torch.empty(4), None, ())
