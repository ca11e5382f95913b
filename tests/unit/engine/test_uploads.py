"""Tensors read into two buffers in turns, on a device that copies as late as it may."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.checkpoints.safetensors_header import TensorHeader, read_safetensors_header
from serve_app.engine.tensor_file import TensorReader
from serve_app.engine.uploads import Uploads

Ranges = tuple[tuple[int, int], ...]
PARTS: list[tuple[tuple[int, ...], int | None, Ranges]] = [
    ((13, 6), None, ()),
    ((13, 6), 0, ((0, 2), (5, 6), (12, 13))),
    ((13, 6), 1, ((0, 1), (3, 5))),
    ((5, 4, 3), 1, ((2, 4),)),
    ((5, 4, 3), 2, ((0, 1), (2, 3))),
    ((), None, ()),
]


class LateDevice:
    """A device that copies as late as it may: when somebody waits for it."""

    def __init__(self) -> None:
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.most_pending = 0
        self.dtypes: set[torch.dtype] = set()
        self.steps: list[str] = []
        self._num_sent = self._num_copied = 0

    def send(self, staged: Tensor, target: Tensor) -> None:
        self.pending.append((staged, target))
        self.most_pending = max(self.most_pending, len(self.pending))
        self.dtypes.add(staged.dtype)
        self._num_sent += 1
        self.steps.append(f"send {self._num_sent}")

    def copy_until(self, number: int) -> None:
        while self._num_copied < number:
            staged, target = self.pending.pop(0)
            target.copy_(staged)
            self._num_copied += 1

    def make_event(self) -> "LateEvent":
        return LateEvent(self)

    def mark(self) -> int:
        return self._num_sent


class LateEvent:
    """Behind what was sent before it was recorded."""

    def __init__(self, device: LateDevice) -> None:
        self._device = device
        self._number = 0

    def record(self) -> None:
        self._number = self._device.mark()

    def synchronize(self) -> None:
        self._device.steps.append(f"wait {self._number}")
        self._device.copy_until(self._number)


def uploads_of(device: LateDevice, buffer_bytes: int) -> Uploads:
    return Uploads(torch.device("cpu"), buffer_bytes, device.make_event, device.send)


def store(directory: Path, tensor: Tensor) -> TensorHeader:
    save_file({"tensor": tensor}, directory / "model.safetensors")
    return read_safetensors_header(directory / "model.safetensors")["tensor"]


def part_of(tensor: Tensor, dim: int | None, ranges: Ranges) -> Tensor:
    if dim is None:
        return tensor
    return torch.cat([tensor.narrow(dim, start, end - start) for start, end in ranges], dim)


@pytest.mark.parametrize("buffer_bytes", [1, 30, 100, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim", "ranges"), PARTS)
def test_a_buffer_is_not_filled_again_before_its_copy_is_done(
    tmp_path: Path, buffer_bytes: int, dtype: torch.dtype, shape: tuple[int, ...], dim: int | None, ranges: Ranges
) -> None:
    stored = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = part_of(stored, dim, ranges).to(dtype)
    out, device = torch.full_like(expected, torch.nan), LateDevice()
    reader = TensorReader(2, lambda _device: uploads_of(device, buffer_bytes))
    reader.read(store(tmp_path, stored), out, dim, ranges)
    reader.close()
    assert torch.equal(out, expected)
    assert device.pending == []
    assert device.dtypes <= {torch.float32}  # as the file has them: they are converted there


def test_one_buffer_is_filled_while_the_other_is_copied(tmp_path: Path) -> None:
    stored = torch.arange(100, dtype=torch.float32)
    header, device = store(tmp_path, stored), LateDevice()
    reader = TensorReader(1, lambda _device: uploads_of(device, 80))  # five times
    first, second = torch.empty(100), torch.empty(20)
    reader.read(header, first, None, ())
    assert device.steps == ["send 1", "send 2", "wait 1", "send 3", "wait 2", "send 4", "wait 3", "send 5"]
    assert device.most_pending == 2
    reader.read(header, second, 0, ((40, 60),))  # nobody waits between tensors, but for a buffer
    assert device.steps[8:] == ["wait 4", "send 6"]
    reader.close()
    assert device.steps[10:] in (["wait 5", "wait 6"], ["wait 6", "wait 5"])
    assert torch.equal(first, stored)
    assert torch.equal(second, stored[40:60])


def test_a_row_that_no_buffer_holds_is_sent_alone(tmp_path: Path) -> None:
    stored, device = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)), LateDevice()
    reader = TensorReader(1, lambda _device: uploads_of(device, 16))
    out = torch.empty(3, 40)
    reader.read(store(tmp_path, stored), out, 1, ((10, 50),))
    reader.close()
    assert torch.equal(out, stored[:, 10:])
    assert [step for step in device.steps if "send" in step] == ["send 1", "send 2", "send 3"]
