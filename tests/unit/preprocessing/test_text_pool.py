"""Threads for text work: what they give back."""

import asyncio
import ctypes
from pathlib import Path

import pytest

from serve_app.freed_memory import give_back_freed_memory
from serve_app.preprocessing.text_pool import TextPool
from serve_app.preprocessing.tokenizer import Tokenizer
from tests.fakes import save_model_dir
from tests.unit.gateway.http.test_app import until

HAS_GLIBC = hasattr(ctypes.CDLL(None), "malloc_trim")


def resident_bytes() -> int:
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not HAS_GLIBC, reason="another C library gives memory back by itself")
async def test_memory_of_long_texts_is_given_back(tmp_path: Path) -> None:
    tokenizer, pool = Tokenizer.load(save_model_dir(tmp_path)), TextPool(2)
    text = "the quick brown fox " * 20_000  # 200 bytes or more for each token, while there are tokens
    give_back_freed_memory()  # of tests before this one: it would be taken first, and nothing would seem to grow
    before = resident_bytes()
    await asyncio.gather(*(pool.run(tokenizer.encode, text) for _ in range(2)))
    kept = resident_bytes() - before
    print(f"kept {kept >> 20} MiB")
    assert kept > 100 * 2**20
    await until(lambda: resident_bytes() - before < kept / 2)
    pool.close()
