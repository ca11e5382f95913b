"""Memory that is free in this process, given back to the system."""

import ctypes


def give_back_freed_memory() -> None:
    """Have glibc return the pages it keeps of what was freed (malloc_trim(3)); other C libraries do as they do.

    A loader that has read, rounded and packed each matrix leaves holes as large as a third of what it holds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
