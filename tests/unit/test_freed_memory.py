"""Memory that is given back while nothing is to be done."""

import gc

from serve_app.freed_memory import IdleMemory, resident_bytes

MIB = 1 << 20


class Process:
    """Its size, and how often it has given memory back."""

    def __init__(self) -> None:
        self.num_bytes = 100 * MIB
        self.num_given = 0
        self.memory = IdleMemory(lambda: self.num_bytes, self.give_back)

    def give_back(self) -> None:
        self.num_given += 1
        self.num_bytes = 100 * MIB

    async def look(self, *are_idle: bool) -> int:
        for is_idle in are_idle:
            await self.memory.look(is_idle=is_idle)
        return self.num_given


async def test_it_is_given_back_once_after_work_that_has_grown_it() -> None:
    process = Process()
    assert await process.look(True, True, True) == 1  # what the start has left
    process.num_bytes = 300 * MIB
    assert await process.look(False, False, True) == 1, "answers are on their way out"
    assert await process.look(True, True, True) == 2
    assert await process.look(False, True, False, True, True) == 2, "it has not grown"
    process.num_bytes += 10 * MIB
    assert await process.look(False, True, True) == 2, "it has hardly grown"


def test_a_process_knows_what_it_takes() -> None:
    gc.collect()  # what other tests have left would be given back meanwhile
    before = resident_bytes()
    filled = bytearray(b"x") * (64 * MIB)
    assert 60 * MIB < resident_bytes() - before < 200 * MIB
    assert len(filled) == 64 * MIB
