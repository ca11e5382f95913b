"""What a copy does with its shards when one is lost."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.deployments.generation_work import GenerationWork
from serve_app.deployments.model_copy import ModelCopy
from serve_app.errors import RayshardError
from serve_app.planning.generator_plan import plan_generator
from serve_app.scheduling.output import SequenceOutput
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.wire.control_link import ControlClient
from tests.fakes_engine import FakeModel, run_alone
from tests.fakes_group import FakeGroup, FakeGroups
from tests.fakes_serve import until

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "examples" / "demo_model" / "model"


class Copy:
    """A copy of the demo model on two fake shards, and what it has told."""

    def __init__(self) -> None:
        config = ModelConfig.model_validate(
            {
                "name": "demo",
                "source": str(DEMO),
                "max_model_len": 64,
                "parallel": {"pipeline": 2},
                "engine": {"max_num_seqs": 4, "max_num_batched_tokens": 16, "block_size": 4},
                "timeouts": {"heartbeat_s": 0.6, "collective_s": 0.5, "rendezvous_s": 5.0, "load_s": 10.0},
            }
        )
        self.groups = FakeGroups()
        self.losses: list[RayshardError] = []
        self.token_ids: list[int] = []
        plan = plan_generator(config, ROOT, read_environment({})).refuse_problems()
        self.work = GenerationWork(plan, self._take)
        self.copy = ModelCopy(self.work, self.groups, self.losses.append, retry_s=0.001)

    @property
    def group(self) -> FakeGroup:
        """The last that was made."""
        return self.groups.made[-1]

    async def until_epoch(self, epoch: int) -> None:
        """Returns when the copy is ready in an epoch."""
        await until(lambda: self.copy.epoch == epoch and self.copy.is_ready)

    async def generate(self, seed: int) -> list[int]:
        """The tokens of a request."""
        self.token_ids = []
        (sequence,) = self.work.submit(request_of(seed))
        self.copy.wake()
        await until(lambda: sequence.is_finished)
        return self.token_ids

    def _take(self, outputs: list[SequenceOutput]) -> None:
        for output in outputs:
            self.token_ids += output.chunk.token_ids


def request_of(seed: int) -> GenerateRequest:
    return GenerateRequest(f"r{seed}", [1, 2, 3], SamplingParams(max_tokens=8, seed=seed, ignore_eos=True))


@pytest.fixture
async def copy() -> AsyncIterator[Copy]:
    one = Copy()
    await one.copy.start()
    supervising = asyncio.create_task(one.copy.supervise())
    yield one
    supervising.cancel()
    one.copy.close()
    await asyncio.sleep(0)


async def test_shards_that_stay_begin_the_next_epoch(copy: Copy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    copy.group.is_kept = True
    copy.group.die()
    await copy.until_epoch(2)
    assert len(copy.groups.made) == 1
    assert (copy.group.num_starts, copy.group.suspects, copy.group.is_killed) == (2, frozenset(), False)
    assert await copy.generate(5) == run_alone(FakeModel(), request_of(5), 0, 64, frozenset()).token_ids
    assert len(copy.losses) == 1
    assert copy.group.num_ready == 2, "what is to wait for the next loss is started after each repair"
    (line,) = [message for message in caplog.messages if message.startswith("model copy repaired")]
    for phase in ("noticed_s", "left_s", "processes_s", "met_s", "loaded_s", "sized_s", "warmed_up_s", "all_s"):
        assert f" {phase}=" in line


async def test_all_are_started_anew_when_none_stays(copy: Copy) -> None:
    first = copy.group
    first.die()
    await copy.until_epoch(2)
    assert (len(copy.groups.made), first.num_starts, first.is_killed) == (2, 1, True)


async def test_all_are_started_anew_when_those_that_stay_do_not_come_along(copy: Copy) -> None:
    first = copy.group
    first.is_kept, first.restart_failure = True, OSError("no connection")
    first.die()
    await copy.until_epoch(3)
    assert (len(copy.groups.made), first.num_starts, first.is_killed) == (2, 2, True)
    assert await copy.generate(5) == run_alone(FakeModel(), request_of(5), 0, 64, frozenset()).token_ids


async def test_all_are_started_anew_when_leaving_fails(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    first = copy.group

    async def fail(_suspects: frozenset[int]) -> bool:
        raise OSError("no connection")

    monkeypatch.setattr(first, "renew", fail)
    first.die()
    await copy.until_epoch(2)
    assert (len(copy.groups.made), first.is_killed) == (2, True)


async def test_a_shard_whose_link_comes_up_after_the_loss_is_told_to_leave_all_the_same(copy: Copy) -> None:
    assert copy.copy._control is not None
    address, renew, heard = copy.copy._control.address, copy.group.renew, list[bool]()

    async def listen_late(suspects: frozenset[int]) -> bool:
        client = ControlClient(address, 0)
        heard.append(await asyncio.to_thread(client.leave_listener(), 5.0))
        client.close()
        return await renew(suspects)

    copy.group.is_kept = True
    copy.group.renew = listen_late  # type: ignore[method-assign]
    copy.group.die()
    await copy.until_epoch(2)
    assert heard == [True]


async def test_a_silent_shard_is_ended_and_no_other(copy: Copy) -> None:
    copy.group.is_kept = True
    copy.group.shards[1].is_silent.set()
    await copy.until_epoch(2)
    assert copy.group.suspects == frozenset({1})


async def test_all_are_ended_when_nobody_knows_who_holds_a_step_up(copy: Copy) -> None:
    first = copy.group
    first.shards[1].is_stuck.set()  # the one that draws
    copy.work.submit(request_of(1))
    copy.copy.wake()
    await copy.until_epoch(2)
    assert first.suspects == frozenset({0, 1})


async def test_a_copy_that_is_closed_while_shards_leave_starts_none(copy: Copy) -> None:
    leaving, may_end = asyncio.Event(), asyncio.Event()
    renew = copy.group.renew

    async def wait(suspects: frozenset[int]) -> bool:
        do_stay = await renew(suspects)
        leaving.set()
        await may_end.wait()
        return do_stay

    copy.group.is_kept = True
    copy.group.renew = wait  # type: ignore[method-assign]
    copy.group.die()
    await asyncio.wait_for(leaving.wait(), 10)
    copy.copy.close()
    may_end.set()
    await asyncio.sleep(0.05)
    assert (len(copy.groups.made), copy.group.num_starts, copy.group.is_killed) == (1, 1, True)
