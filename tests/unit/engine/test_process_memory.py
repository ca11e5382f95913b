"""Huge pages for what fills them, measured by what the system says of this process."""

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from serve_app.engine import process_memory
from serve_app.engine.process_memory import ask_for_huge_pages, collapse_to_huge_pages

HUGE_BYTES = 1 << 21
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

needs_huge_pages = pytest.mark.skipif(
    not _SETTING.exists() or "[never]" in _SETTING.read_text(), reason="this system gives no huge pages"
)


def huge_bytes(address: int) -> int:
    """Bytes in huge pages of the mapping that an address lies in."""
    is_own = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            is_own = start <= address < end
        elif is_own and first == "AnonHugePages:":
            return int(rest[0]) * 1024
    raise AssertionError("no such mapping")


def resident_pages(address: int, num_bytes: int) -> int:
    """Small pages of a range that are in memory."""
    flags = (ctypes.c_ubyte * (num_bytes // mmap.PAGESIZE))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), flags) == 0
    return sum(flag & 1 for flag in flags)


@needs_huge_pages
def test_a_tensor_that_asks_takes_huge_pages() -> None:
    tensor = torch.empty(32 * HUGE_BYTES, dtype=torch.int8)
    ask_for_huge_pages(tensor)
    tensor.fill_(1)
    assert huge_bytes(tensor.data_ptr() + HUGE_BYTES) >= 24 * HUGE_BYTES


def test_a_small_tensor_may_ask() -> None:
    tensor = torch.ones(3)
    ask_for_huge_pages(tensor)
    assert tensor.tolist() == [1, 1, 1]


@needs_huge_pages
def test_full_memory_is_collapsed_and_keeps_what_it_holds() -> None:
    tensor = torch.arange(8 * HUGE_BYTES, dtype=torch.int32)
    assert collapse_to_huge_pages() >= 24 * HUGE_BYTES
    assert huge_bytes(tensor.data_ptr() + HUGE_BYTES) >= 24 * HUGE_BYTES
    assert torch.equal(tensor, torch.arange(8 * HUGE_BYTES, dtype=torch.int32))


@needs_huge_pages
def test_memory_with_holes_does_not_grow() -> None:
    area = mmap.mmap(-1, 6 * HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    handle = ctypes.c_char.from_buffer(area)
    address = ctypes.addressof(handle)
    for offset in range(0, len(area), 2 * mmap.PAGESIZE):  # every other page
        area[offset] = 1
    before = resident_pages(address, len(area))
    collapse_to_huge_pages()
    assert resident_pages(address, len(area)) == before < len(area) // mmap.PAGESIZE
    del handle
    area.close()


_FORKED = """
import mmap, os, sys
from serve_app.engine.process_memory import collapse_to_huge_pages
from tests.unit.engine.test_process_memory import HUGE_BYTES, private_bytes
area = mmap.mmap(-1, 8 * HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area[:] = bytes(len(area))
if os.fork() == 0:
    own = mmap.mmap(-1, 8 * HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    own[:] = bytes(len(own))
    before = private_bytes()
    print(collapse_to_huge_pages() // HUGE_BYTES, (private_bytes() - before) // HUGE_BYTES, flush=True)
else:
    os.wait()
"""


def private_bytes() -> int:
    """What this process takes alone."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty"))


@needs_huge_pages
def test_a_forked_process_goes_on_sharing_what_it_shares() -> None:
    done = subprocess.run([sys.executable, "-c", _FORKED], stdout=subprocess.PIPE, text=True, check=True)
    num_collapsed, num_more = map(int, done.stdout.split())
    assert num_collapsed >= 7, "its own"
    assert num_more < 4, "the other's eight are not copied"


def test_where_a_process_may_not_see_its_pages_all_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_memory, "_OWN_PROCESS", tmp_path)
    assert collapse_to_huge_pages() == 0
