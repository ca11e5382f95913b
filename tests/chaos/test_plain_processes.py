"""Real shard processes that are killed, stopped and kept busy: nobody hangs, nothing is lost."""

import asyncio
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import pytest

from serve_app.engine.plain_processes import PlainProcesses, ProcessShardGroup
from serve_app.errors import ShardLostError, UnavailableError
from serve_app.preprocessing.grammar_text import schema_grammar
from serve_app.scheduling.sequence import Sequence
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepInput
from serve_app.wire.control_link import ControlServer
from tests.calm import Calm
from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.fakes import EOS, byte_level_tokenizer, save_model_dir
from tests.fakes_links import next_message
from tests.plain_driver import Split, driven_copy, greedy, load_group, shard_settings

Pool = TypeVar("Pool", bound=PlainProcesses)

LIMITS = EngineLimits(max_num_seqs=8, max_num_batched_tokens=32, max_model_len=256, block_size=4, num_blocks=64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@contextmanager
def ended(pool: Pool) -> Iterator[Pool]:
    """A pool whose processes do not outlive the test."""
    try:
        yield pool
    finally:
        pool.kill()


class KilledWhileLoading(PlainProcesses):
    """The last shard hangs when loading begins, so that the others wait for it, and dies a second later."""

    killed_s = 0.0

    def _call(self, pipes: list[Connection], method: str, *args: Any) -> list[Any]:
        if method == "load":
            os.kill(_pid(self, -1), signal.SIGSTOP)
            threading.Timer(1.0, self._kill_last).start()
        return super()._call(pipes, method, *args)

    def _kill_last(self) -> None:
        self.killed_s = time.monotonic()
        os.kill(_pid(self, -1), signal.SIGKILL)


def test_a_shard_killed_while_loading_ends_the_others_within_10_s(checkpoint: Path) -> None:
    with ended(KilledWhileLoading(2)) as pool:
        with pytest.raises(UnavailableError, match="died during load"):
            load_group(pool, checkpoint, Split(1, 2))
        assert 0 < time.monotonic() - pool.killed_s < 10
        assert not any(process.is_alive() for process in pool.processes)


def test_a_shard_that_died_before_the_next_load_is_an_error(checkpoint: Path) -> None:
    with ended(PlainProcesses(2)) as pool:
        load_group(pool, checkpoint, Split(2, 1))
        os.kill(_pid(pool, 1), signal.SIGKILL)
        pool.processes[1].join()
        with pytest.raises(UnavailableError, match="died during create"):
            load_group(pool, checkpoint, Split(2, 1))
        assert not any(process.is_alive() for process in pool.processes)


@pytest.mark.parametrize(
    ("split", "index", "kind"),
    [
        (Split(2, 2), 3, signal.SIGKILL),  # the sampling shard's twin
        (Split(1, 2), 0, signal.SIGKILL),  # the one with the store, that samples
        (Split(3, 1), 1, signal.SIGKILL),  # between two that are no neighbours
        (Split(2, 1), 0, signal.SIGSTOP),  # nobody hears of it but by its silence
        (Split(1, 2), 1, signal.SIGSTOP),
    ],
    ids=str,
)
async def test_a_shard_lost_under_running_streams_is_noticed_within_5_s_and_replaced_alone(
    checkpoint: Path, split: Split, index: int, kind: signal.Signals
) -> None:
    async with driven_copy(checkpoint, split, LIMITS, heartbeat_s=3.5) as driven:
        (undisturbed,) = await driven.generate([greedy("before", [7] * 8, 20)])
        for stream in range(8):
            driven.submit(greedy(str(stream), [5 + stream] * 8, 200))
        await driven.until(lambda: all(len(driven.outcome(str(stream)).token_ids) >= 3 for stream in range(8)))
        first = driven.groups[0].processes
        lost = first.pop(index)
        assert lost.pid is not None
        os.kill(lost.pid, kind)
        async with Calm() as calm:
            with pytest.raises(ShardLostError, match="silent" if kind is signal.SIGSTOP else "ended|gone"):
                await driven.until(lambda: False)
            assert calm.lasted_s < 5
        await driven.copy.wait_until_ready(60)
        assert driven.copy.epoch == 2
        (outcome,) = await driven.generate([greedy("after", [7] * 8, 20)])
        assert outcome.token_ids == undisturbed.token_ids
        (group,) = driven.groups
        assert all(process in group.processes and process.is_alive() for process in first)
        assert not lost.is_alive()
        assert group.times.num_kept == split.num_shards - 1


async def test_held_answers_are_the_same_after_the_loss_of_the_shard_that_compiled_their_grammar(
    tmp_path: Path,
) -> None:
    core = byte_level_tokenizer()
    directory = make_checkpoint("llama", tmp_path, vocab_size=core.get_vocab_size(), eos_token_id=core.get_vocab()[EOS])
    save_model_dir(directory, core)
    grammar = schema_grammar({"type": "array", "items": {"enum": ["a", 1, None]}, "minItems": 2, "maxItems": 6})
    params = SamplingParams(60, seed=3, grammar=grammar)
    held = [GenerateRequest(f"held {seed}", [7] * 8, replace(params, seed=seed)) for seed in range(3)]
    free = greedy("free", [9] * 8, 20)
    async with driven_copy(directory, Split(2, 2), LIMITS) as driven:
        before = [one.token_ids for one in await driven.generate([*held, free])]
        texts = [core.decode(token_ids[:-1]) for token_ids in before[:3]]
        assert all(2 <= len(json.loads(text)) <= 6 for text in texts)
        lost = driven.groups[0].processes.pop(2)  # the last stage's first rank
        assert lost.pid is not None
        os.kill(lost.pid, signal.SIGKILL)
        with pytest.raises(ShardLostError):
            await driven.until(lambda: False)
        await driven.copy.wait_until_ready(60)
        assert [one.token_ids for one in await driven.generate([*held, free])] == before
        assert driven.scheduler.num_waiting == 0


async def test_a_group_that_is_stopped_returns_and_one_whose_shard_fails_says_why(checkpoint: Path) -> None:
    settings = shard_settings(checkpoint, Split(2, 1), block_size=LIMITS.block_size)
    for is_broken in (False, True):
        group = ProcessShardGroup(settings)
        await group.start()
        await group.allocate(LIMITS)
        control = ControlServer(group.host, 1, len(settings))
        running = asyncio.create_task(group.run(control.address))
        try:
            for _ in settings:
                await asyncio.wait_for(next_message(control), 30)  # greetings
            if is_broken:
                control.send_step(StepInput(7, [], [], [], [], [], [], []))  # seven steps before it are missing
                with pytest.raises(ShardLostError, match="a shard failed: InternalError: step 7 came"):
                    await asyncio.wait_for(running, 30)
            else:
                control.send_stop()
                await asyncio.wait_for(running, 30)
        finally:
            group.kill()
            control.close()


async def test_random_arrivals_and_aborts_under_preemption_end_with_all_blocks_free(checkpoint: Path) -> None:
    """Ten seconds of requests that come and go, or more where steps take long, until some were pre-empted."""
    randomness = random.Random(0)
    alive: list[Sequence] = []
    num_submitted = num_aborted = 0
    async with driven_copy(checkpoint, Split(2, 2), LIMITS) as driven:
        began_s = time.monotonic()

        def goes_on() -> bool:
            passed_s = time.monotonic() - began_s
            return passed_s < 10 or (passed_s < 120 and driven.scheduler.num_preemptions <= 3)

        while goes_on():
            alive = [sequence for sequence in alive if not sequence.is_finished]
            if len(alive) < 16:
                prompt = [randomness.randrange(3, VOCAB_SIZE) for _ in range(randomness.randint(1, 60))]
                alive.append(driven.submit(greedy(str(num_submitted), prompt, randomness.randint(1, 80))))
                num_submitted += 1
            elif randomness.random() < 0.1:
                driven.abort(alive[:1] if randomness.random() < 0.5 else alive[-1:])
                num_aborted += 1
            await asyncio.sleep(randomness.random() * 0.02)
        num_preemptions = driven.scheduler.num_preemptions
        await asyncio.wait_for(driven.until(lambda: all(sequence.is_finished for sequence in alive)), timeout=30)
        await driven.until_idle()
        driven.scheduler.check()
        assert driven.scheduler.num_free_blocks == LIMITS.num_blocks
    print(f"{num_submitted} requests, {num_aborted} aborted, {num_preemptions} pre-emptions")
    assert num_submitted > 20
    assert num_aborted > 5
    assert num_preemptions > 3


def _pid(pool: PlainProcesses, index: int) -> int:
    pid = pool.processes[index].pid
    assert pid is not None
    return pid
