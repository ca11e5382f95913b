"""What a device is asked of its memory, and how much of it is left for a KV cache."""

from dataclasses import dataclass
from typing import Protocol

import torch

from serve_app.types.shards import GPU_RESERVE_BYTES


class DeviceMemory(Protocol):
    """The memory of one device, as this process sees it. Sizes in bytes."""

    def total_bytes(self) -> int:
        """Of the whole device."""
        ...

    def free_bytes(self) -> int:
        """That no process has taken."""
        ...

    def held_bytes(self) -> int:
        """That this process has taken for tensors, whether they are in use or not."""
        ...

    def used_bytes(self) -> int:
        """Of this process's tensors."""
        ...

    def start_peak(self) -> None:
        """Forget earlier peaks."""
        ...

    def peak_bytes(self) -> int:
        """The most that `used_bytes` has been since; what was started on the device has ended."""
        ...

    def release(self) -> None:
        """Give back what is held and not in use."""
        ...


class CudaMemory:
    """DeviceMemory of a GPU, through torch's allocator."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def total_bytes(self) -> int:
        """See DeviceMemory."""
        return torch.cuda.mem_get_info(self._device)[1]

    def free_bytes(self) -> int:
        """See DeviceMemory."""
        return torch.cuda.mem_get_info(self._device)[0]

    def held_bytes(self) -> int:
        """See DeviceMemory."""
        return torch.cuda.memory_reserved(self._device)

    def used_bytes(self) -> int:
        """See DeviceMemory."""
        return torch.cuda.memory_allocated(self._device)

    def start_peak(self) -> None:
        """See DeviceMemory."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        """See DeviceMemory."""
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device)

    def release(self) -> None:
        """See DeviceMemory."""
        torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of a device once the weights are there, and what the largest steps took beside them."""

    total_bytes: int
    free_bytes: int  # that no process has taken
    held_bytes: int  # by the weights
    step_bytes: int  # at the peak, and kept from step to step; beside weights and KV cache


def kv_cache_bytes(use: MemoryUse, utilization: float) -> int:
    """What is left for a KV cache of this process's share of the device, a reserve kept back; 0: nothing.

    utilization: the share, in (0, 1]. What other processes have taken of it already is not there to be had.
    """
    share = int(use.total_bytes * utilization) - use.held_bytes
    return max(0, min(share, use.free_bytes) - use.step_bytes - GPU_RESERVE_BYTES)
