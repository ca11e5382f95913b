"""The device that is checked: whether it can be used, and how long it takes for something."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_ROUND_S = 0.01
_NUM_ROUNDS = 3
_MAX_CALLS = 500


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a part measures."""

    device: torch.device
    is_tiny: bool  # in a minute, on a CPU
    copy_bytes_per_s: float  # read and written

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def is_usable(self) -> bool:
        """Whether the device still computes; one that a kernel has failed on does not, as long as the process lives."""
        try:
            return int(torch.ones(1, device=self.device).add(1).item()) == 2
        except RuntimeError:
            return False


def synchronize(device: torch.device) -> None:
    """Wait for what has been asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_us(call: Callable[[], object], device: torch.device) -> float:
    """Microseconds of a call among calls in a row, launches included; the best of several rounds."""
    _round_s(call, 1, device)  # compiles, allocates
    num_calls = min(max(1, int(_ROUND_S / _round_s(call, 1, device))), _MAX_CALLS)
    return min(_round_s(call, num_calls, device) for _ in range(_NUM_ROUNDS)) / num_calls * 1e6


def _round_s(call: Callable[[], object], num_calls: int, device: torch.device) -> float:
    synchronize(device)
    begin_s = time.perf_counter()
    for _ in range(num_calls):
        call()
    synchronize(device)
    return time.perf_counter() - begin_s
