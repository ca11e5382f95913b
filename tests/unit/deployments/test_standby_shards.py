"""Which process a shard gets: one that waits, or a new one."""

import asyncio
from dataclasses import dataclass, field

import pytest

from serve_app.config.engine import ParallelConfig
from serve_app.deployments import standby_shards
from serve_app.deployments.standby_shards import ShardProcesses
from serve_app.planning.reservations import bundle_of
from serve_app.types.shards import EngineKind


@dataclass(eq=False)
class FakeProcess:
    """A process in a place."""

    place: int
    is_prepared: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None  # of its imports, and later of its answers
    is_stopped: bool = False
    is_killed: bool = False

    async def prepare(self, _kind: EngineKind) -> None:
        """Import for as long as the test likes."""
        await self.is_prepared.wait()
        if self.failure is not None:
            raise self.failure

    async def locate(self) -> object:
        """Answer."""
        if self.is_stopped:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return None

    def kill(self) -> None:
        """Note it."""
        self.is_killed = True


class Machine:
    """All processes that were started."""

    def __init__(self, num_shards: int = 2, num_standby: int = 1, tensor: int = 1) -> None:
        self.started: list[FakeProcess] = []
        parallel = ParallelConfig(pipeline=num_shards // tensor, tensor=tensor)
        self.processes = ShardProcesses(
            self._start, lambda place: bundle_of(place, parallel), "generation", num_shards, num_standby
        )

    async def take(self, shard: int, beside: int | None = None) -> FakeProcess:
        """A process for a shard, in its own bundle where nothing else is said."""
        return await self.processes.take(shard, 1 + shard if beside is None else beside)

    async def prepare_all(self) -> None:
        """Let the imports end."""
        for process in self.started:
            process.is_prepared.set()
        for _ in range(3):
            await asyncio.sleep(0)

    @property
    def living(self) -> list[int]:
        """Bundles that are taken."""
        return sorted(process.place for process in self.started if not process.is_killed)

    def _start(self, place: int) -> FakeProcess:
        assert place not in self.living, "a place holds one process"
        self.started.append(FakeProcess(place))
        return self.started[-1]


async def test_one_that_waits_takes_the_place_of_one_that_is_lost_and_another_waits_in_its_place() -> None:
    machine = Machine()
    shards = [await machine.take(index) for index in range(2)]
    assert machine.living == [1, 2], "nothing waits before the copy is ready"
    machine.processes.stand_by()
    await machine.prepare_all()
    machine.processes.end(shards[0])
    taken = await machine.take(0)
    assert (taken.place, len(machine.started)) == (3, 3)
    machine.processes.stand_by()
    assert machine.living == [1, 2, 3]
    assert machine.started[-1].place == 1


async def test_without_one_that_waits_a_new_one_is_started() -> None:
    machine = Machine(num_standby=0)
    shards = [await machine.take(index) for index in range(2)]
    machine.processes.stand_by()
    machine.processes.end(shards[1])
    assert (await machine.take(1)).place == 2
    assert len(machine.started) == 3


async def test_one_that_imports_still_is_taken_as_it_is() -> None:
    machine = Machine(num_shards=1)
    lost = await machine.take(0)
    machine.processes.stand_by()
    machine.processes.end(lost)
    taken = await machine.take(0)
    assert (taken.place, len(machine.started)) == (2, 2)
    await machine.prepare_all()


@pytest.mark.parametrize("ill", ["failed", "died", "stopped"])
async def test_one_that_is_not_well_is_ended_and_a_new_one_started(ill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby_shards, "_ANSWER_S", 0.01)
    machine = Machine(num_shards=1)
    lost = await machine.take(0)
    machine.processes.stand_by()
    waiting = machine.started[-1]
    if ill == "failed":
        waiting.failure = ImportError("no torch")
    await machine.prepare_all()
    if ill == "died":
        waiting.failure = OSError("the process is gone")
    waiting.is_stopped = ill == "stopped"
    machine.processes.end(lost)
    taken = await machine.take(0)
    assert waiting.is_killed
    assert taken is machine.started[-1]
    assert machine.living == [taken.place]


async def test_as_many_wait_as_are_asked_for() -> None:
    machine = Machine(num_standby=2)
    for index in range(2):
        await machine.take(index)
    machine.processes.stand_by()
    machine.processes.stand_by()
    assert machine.living == [1, 2, 3, 4]
    await machine.prepare_all()


async def test_a_shard_comes_back_in_its_own_place_which_may_be_on_another_kind_of_gpu() -> None:
    machine = Machine(num_shards=3, num_standby=0)
    shards = [await machine.take(index) for index in range(3)]
    assert [shard.place for shard in shards] == [1, 2, 3]
    for index in (2, 0):
        machine.processes.end(shards[index])
    assert [(await machine.take(index)).place for index in (0, 2)] == [1, 3]


async def test_what_stands_by_for_a_rank_is_taken_from_the_bundle_of_its_stage() -> None:
    machine = Machine(num_shards=4, num_standby=2, tensor=2)  # places 1, 2 and 5 are the first stage's
    shards = [await machine.take(index) for index in range(4)]
    machine.processes.stand_by()
    await machine.prepare_all()
    for shard, place in ((3, 6), (0, 5)):
        machine.processes.end(shards[shard])
        assert (await machine.take(shard, beside=shards[shard ^ 1].place)).place == place
    machine.processes.stand_by()
    assert machine.living == [1, 2, 3, 4, 5, 6]


async def test_a_new_one_is_in_the_bundle_of_the_other_ranks_whatever_its_own_place_is() -> None:
    machine = Machine(num_shards=4, num_standby=0, tensor=2)
    seated = [await machine.take(index) for index in range(4)]  # Ray's nodes have made the last two the first stage
    for lost in (seated[0], seated[2]):
        machine.processes.end(lost)
    assert (await machine.take(0, beside=seated[3].place)).place == 3
    assert (await machine.take(2, beside=seated[1].place)).place == 1
