"""Memory that this process has freed and its C library keeps."""

import ctypes


def give_back_freed_memory() -> None:
    """Have glibc return the pages it keeps of what was freed (malloc_trim(3)); other C libraries are left alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
