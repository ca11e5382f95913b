"""Small arrays on their way to the device: all of a step in one copy, which the host does not wait for."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from serve_app.engine.block_tables import IntArray

_NUM_BUFFERS = 4  # copies that may be under way: two of a step, and the step before runs while one is launched


class Event(Protocol):
    """A point in the device's work."""

    def record(self) -> None:
        """Put it behind all that has been asked of the device."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has come to it."""
        ...


class HostStaging:
    """Uploads int64 arrays through page-locked memory; on CPU they are tensors as they are."""

    def __init__(self, device: torch.device, make_event: Callable[[], Event] = torch.cuda.Event) -> None:
        self._device = device
        self._make_event = make_event
        self._buffers: list[Tensor | None] = [None] * _NUM_BUFFERS
        self._events: list[Event | None] = [None] * _NUM_BUFFERS
        self._turn = 0

    def upload(self, arrays: Sequence[IntArray]) -> list[Tensor]:
        """Tensors of the same shapes on the device."""
        if self._device.type == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        return self._upload_at_once(arrays)

    def _upload_at_once(self, arrays: Sequence[IntArray]) -> list[Tensor]:
        sizes = [array.size for array in arrays]
        buffer = self._next_buffer(sum(sizes))
        for array, part in zip(arrays, torch.split(buffer, sizes), strict=True):
            part.copy_(torch.from_numpy(array).reshape(-1))
        uploaded = buffer.to(self._device, non_blocking=True)
        event = self._events[self._turn] = self._make_event()
        event.record()
        return [part.view(array.shape) for array, part in zip(arrays, torch.split(uploaded, sizes), strict=True)]

    def _next_buffer(self, size: int) -> Tensor:
        """Memory [size] int64 that no copy reads any more."""
        self._turn = (self._turn + 1) % _NUM_BUFFERS
        event, buffer = self._events[self._turn], self._buffers[self._turn]
        if event is not None:
            event.synchronize()
        if buffer is None or len(buffer) < size:
            pinned = self._device.type == "cuda"
            buffer = torch.empty(1 << (size - 1).bit_length(), dtype=torch.int64, pin_memory=pinned)
            self._buffers[self._turn] = buffer
        return buffer[:size]
