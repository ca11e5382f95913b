"""What memory this process takes, and what of it is freed and kept by its C library."""

import asyncio
import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path

_OWN_PROCESS = Path("/proc/self")
_MIN_GROWTH_BYTES = 32 << 20
_CALM_LOOKS = 2  # in a row: what has just been answered is still on its way out


def give_back_freed_memory() -> None:
    """Have glibc return the pages it keeps of what was freed (malloc_trim(3)); other C libraries are left alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_bytes() -> int:
    """Of the host's memory, that this process takes now (statm in proc(5)), a GPU's libraries included."""
    num_pages = int((_OWN_PROCESS / "statm").read_text().split()[1])
    return num_pages * mmap.PAGESIZE


class IdleMemory:
    """Gives memory back when a process that has grown has nothing to do: glibc keeps what large requests have freed."""

    def __init__(
        self, measure: Callable[[], int] = resident_bytes, give_back: Callable[[], None] = give_back_freed_memory
    ) -> None:
        self._measure = measure
        self._give_back = give_back
        self._num_calm = 0  # looks since there was work
        self._least_bytes: int | None = None  # after the last time

    async def look(self, *, is_idle: bool) -> None:
        """To be called now and then."""
        self._num_calm = self._num_calm + 1 if is_idle else 0
        if self._num_calm != _CALM_LOOKS:
            return
        if self._least_bytes is None or self._measure() > self._least_bytes + _MIN_GROWTH_BYTES:
            await asyncio.to_thread(self._give_back)
            self._least_bytes = self._measure()
