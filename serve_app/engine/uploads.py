"""Tensors on their way from a file to a device: read into one buffer while the other one is copied."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from serve_app.engine.host_staging import Event

UPLOAD_BYTES = 16 << 20  # of a buffer: its copy takes less time than a disk needs to fill the other


@dataclass(slots=True)
class _Buffer:
    memory: Tensor  # [bytes] uint8
    event: Event | None = None  # behind the copies out of it


class Uploads:
    """Two page-locked buffers; one is given out again once the device has copied what it held."""

    def __init__(
        self,
        device: torch.device,
        buffer_bytes: int = UPLOAD_BYTES,
        make_event: Callable[[], Event] = torch.cuda.Event,
        send: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        """send: asks for a copy of a tensor of the host into one of the device, and does not wait for it."""
        self.buffer_bytes = buffer_bytes
        self._is_pinned = device.type == "cuda"
        self._make_event = make_event
        self._send = send or send_to_device
        self._buffers = [_Buffer(self._memory(0)), _Buffer(self._memory(0))]
        self._turn = 0

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory on the host, of this shape, that no copy reads any more."""
        self._turn = 1 - self._turn
        buffer = self._buffers[self._turn]
        self._wait(buffer)
        num_bytes = math.prod(shape) * dtype.itemsize
        if len(buffer.memory) < num_bytes:
            buffer.memory = self._memory(max(num_bytes, self.buffer_bytes))
        return buffer.memory[:num_bytes].view(dtype).view(shape)

    def send(self, staged: Tensor, target: Tensor) -> None:
        """Copy what `buffer` gave last, once it is filled, to the device; a dtype is converted there.

        What is asked of the device's stream after it finds `target` filled.
        """
        self._send(staged, target)
        event = self._buffers[self._turn].event = self._make_event()
        event.record()

    def finish(self) -> None:
        """Wait until all is copied."""
        for buffer in self._buffers:
            self._wait(buffer)

    def _wait(self, buffer: _Buffer) -> None:
        if buffer.event is not None:
            buffer.event.synchronize()
            buffer.event = None

    def _memory(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._is_pinned and num_bytes > 0)


def uploads_to(device: torch.device) -> Uploads | None:
    """Of tensors on a device; None: they are on the host, and files are read into them as they lie."""
    return Uploads(device) if device.type == "cuda" else None


def send_to_device(staged: Tensor, target: Tensor) -> None:
    """Copy page-locked memory without waiting; no more than it is held twice where the dtype is converted."""
    if staged.dtype != target.dtype:
        staged = staged.to(target.device, non_blocking=True)
    target.copy_(staged, non_blocking=True)
