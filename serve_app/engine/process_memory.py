"""How this process's memory is laid out once a model is loaded: freed pages given back, the weights in huge pages."""

import ctypes
import logging
import mmap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from serve_app.freed_memory import give_back_freed_memory

logger = logging.getLogger(__name__)

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
_OWN_PROCESS = Path("/proc/self")
_MADV_HUGEPAGE = 14  # of <linux/mman.h>
_MADV_COLLAPSE = 25  # since Linux 6.1
_NO_HUGE_PAGES = 1 << 62
_OWN_BITS = np.uint64(1 << 63 | 1 << 56)  # of a pagemap's entry, 64 bits for each page: present, mapped by nobody else


def settle_memory(device: torch.device) -> None:
    """Once a model is loaded: give freed pages back, and move weights on CPU into huge pages.

    A loader that has read, rounded and packed each matrix leaves holes as large as a third of what it holds.
    """
    give_back_freed_memory()
    if device.type == "cpu":
        collapse_to_huge_pages()


def ask_for_huge_pages(tensor: Tensor) -> None:
    """Have a new tensor, not written yet, take huge pages where it fills them (madvise(2), MADV_HUGEPAGE).

    Nothing happens to one that is not on CPU.
    """
    if tensor.device.type != "cpu":
        return
    huge_size = _huge_page_size()
    start = -(-tensor.data_ptr() // huge_size) * huge_size
    end = (tensor.data_ptr() + tensor.nbytes) // huge_size * huge_size
    if start < end:
        _madvise(start, end, _MADV_HUGEPAGE)


def collapse_to_huge_pages() -> int:
    """Move memory that fills huge pages into such pages (madvise(2), MADV_COLLAPSE); gives how many bytes that are.

    A step of decoding reads all weights once, and looks up each page of 4 KiB: without, it is a quarter faster. For
    what a library allocates itself; it copies, at half a gigabyte a second, what did not ask for huge pages before.
    Nothing grows: a huge page that would have a hole is not made, nor one of pages that are shared with the process
    that this one was forked from, for it would be a copy. Where the system has none, all stays as it was.
    """
    try:
        ranges = list(_full_ranges(_huge_page_size()))
    except OSError as error:  # a sandbox that does not show a process its pages
        logger.info("weights stay in small pages: %s", error)
        return 0
    return sum(end - start for start, end in ranges if _madvise(start, end, _MADV_COLLAPSE))


@cache
def _huge_page_size() -> int:
    """In bytes; more than any memory has where there are none."""
    try:
        if "[never]" not in (_HUGE_PAGES / "enabled").read_text():
            return int((_HUGE_PAGES / "hpage_pmd_size").read_text())
    except (OSError, ValueError) as error:
        logger.info("weights stay in small pages: %s", error)
    return _NO_HUGE_PAGES


def _madvise(start: int, end: int, advice: int) -> bool:
    """Whether the system took the advice."""
    status: int = ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)
    return status == 0


def _full_ranges(huge_size: int) -> Iterator[tuple[int, int]]:
    """Addresses [start, end) of whole huge pages of anonymous memory whose small pages are all there and not shared."""
    if huge_size == _NO_HUGE_PAGES:
        return
    num_small = huge_size // mmap.PAGESIZE
    with (_OWN_PROCESS / "pagemap").open("rb") as pagemap:
        for line in (_OWN_PROCESS / "maps").read_text().splitlines():
            span, access, _offset, _device, inode = line.split()[:5]
            if not access.startswith("rw-p") or inode != "0":
                continue
            first, last = (int(address, 16) for address in span.split("-"))
            first, last = -(-first // huge_size), last // huge_size
            if first >= last:
                continue
            pagemap.seek(first * num_small * 8)
            entries = np.frombuffer(pagemap.read((last - first) * num_small * 8), dtype=np.uint64)
            is_full = ((entries & _OWN_BITS) == _OWN_BITS).reshape(-1, num_small).all(axis=1)
            borders = np.flatnonzero(np.diff(np.concatenate([[0], is_full, [0]])))
            for begin, end in borders.reshape(-1, 2).tolist():
                yield (first + begin) * huge_size, (first + end) * huge_size
