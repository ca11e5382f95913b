"""A process that works a batch is killed, as by the kernel: the next one takes the batch up where it was left."""

import asyncio
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.batch_calls import Replica, completion

NUM_LINES, HELD = 40, 25
WORKER = """
import asyncio, sys
from pathlib import Path
from tests.batch_calls import Replica, ScriptedLines

class Noted(ScriptedLines):
    async def __call__(self, path, body, caller, limit_s):
        with open(sys.argv[2], "a") as file:
            file.write(body.decode() + "\\n")
        return await super().__call__(path, body, caller, limit_s)

async def work():
    lines = Noted(holds=lambda prompt: prompt == sys.argv[3])
    async with Replica(Path(sys.argv[1]), lines, {"concurrency": 4}).working():
        await asyncio.sleep(60)

asyncio.run(work())
"""


@pytest.mark.process
async def test_a_killed_worker_leaves_nothing_lost_and_only_what_was_under_way_to_be_run_again(tmp_path: Path) -> None:
    directory, notes = tmp_path / "batches", tmp_path / "notes"
    replica = Replica(directory)
    batch = replica.add([completion(f"id-{number}", f"p{number}") for number in range(NUM_LINES)])
    arguments = [sys.executable, "-c", WORKER, str(directory), str(notes), f"p{HELD}"]
    process = await asyncio.create_subprocess_exec(*arguments, cwd=Path(__file__).parents[4])
    try:
        async with asyncio.timeout(60):
            while replica.num_completed(batch.id) < NUM_LINES - 1:
                assert process.returncode is None
                await asyncio.sleep(0.02)
        [queued] = replica.batches.queued()
        assert replica.batches.claim(queued) is None
    finally:
        process.kill()
        await process.wait()
    async with replica.working():
        batch = await replica.until(batch.id)
    assert (batch.status, batch.request_counts.completed) == ("completed", NUM_LINES)
    assert set(replica.results(batch.output_file_id)) == {f"id-{number}" for number in range(NUM_LINES)}
    assert replica.call.prompts == [f"p{HELD}"]
    begun = Counter(notes.read_text().splitlines())
    assert len(begun) == NUM_LINES
    assert set(begun.values()) == {1}
