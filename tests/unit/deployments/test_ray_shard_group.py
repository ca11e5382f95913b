"""A group of actors that loses some, on stand-ins for actors."""

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.deployments import ray_shard_group
from serve_app.deployments.generation_work import GenerationWork
from serve_app.deployments.ray_shard_group import RayShardGroup
from serve_app.deployments.standby_shards import ShardProcesses
from serve_app.errors import PeerLostError, ShardLostError
from serve_app.planning.generator_plan import plan_generator
from serve_app.planning.reservations import bundle_of
from serve_app.types.shards import EngineKind, ShardLocation, ShardReport
from serve_app.wire.control_link import ControlAddress

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "examples" / "demo_model" / "model"
NUM_SHARDS = 3
ADDRESS = ControlAddress("tcp://127.0.0.1:1", "key", 1)


class FakeMethod:
    """A method of an actor: notes its calls."""

    def __init__(self, name: str, calls: list[str], result: object) -> None:
        self._name = name
        self._calls = calls
        self._result = result

    def remote(self, *_args: object) -> Awaitable[object]:
        """Answer."""
        self._calls.append(self._name)
        return asyncio.sleep(0, self._result)


class FakeProcess:
    """A shard's process whose run a test ends as it likes."""

    def __init__(self, place: int, node: str) -> None:
        self.place = place
        self.node = node
        self.calls: list[str] = []
        self.actor = self
        self.is_killed = False
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __getattr__(self, name: str) -> FakeMethod:
        results = {"open_store": 1234, "load": ShardReport(1, 10, 0.5)}
        return FakeMethod(name, self.calls, results.get(name))

    async def prepare(self, _kind: EngineKind) -> None:
        """Nothing to import."""

    async def locate(self) -> ShardLocation:
        """Where the test has put it."""
        return ShardLocation(self.node, self.place)

    def run(self, _address: ControlAddress) -> asyncio.Future[None]:
        """Until the test ends it."""
        self.end = asyncio.get_running_loop().create_future()
        return self.end

    async def leave(self) -> None:
        """As a shard's process does."""
        with contextlib.suppress(PeerLostError):
            await asyncio.shield(self.end)
        self.calls.append("leave")

    def kill(self) -> None:
        """Note it."""
        self.is_killed = True


class Group:
    """A RayShardGroup, and its processes in the order of their start."""

    def __init__(self, nodes: Sequence[str] = ("here",) * NUM_SHARDS, tensor: int = 1) -> None:
        """nodes: of the processes, in the order of their start."""
        parallel = {"pipeline": len(nodes) // tensor, "tensor": tensor}
        config = ModelConfig.model_validate(
            {"name": "demo", "source": str(DEMO), "max_model_len": 64, "parallel": parallel}
        )
        plan = plan_generator(config, ROOT, read_environment({})).refuse_problems()
        self.started: list[FakeProcess] = []
        self._nodes = nodes
        processes: Any = ShardProcesses(
            self._start, lambda place: bundle_of(place, config.parallel), "generation", len(nodes), 0
        )
        self.group = RayShardGroup(GenerationWork(plan, lambda _outputs: None), "here", processes)

    def _start(self, place: int) -> FakeProcess:
        self.started.append(FakeProcess(place, self._nodes[place - 1]))
        return self.started[-1]


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> Group:
    """It has run on three shards, and lost the second."""
    monkeypatch.setattr(ray_shard_group, "LEAVE_S", 30.0)
    one = Group()
    await one.group.start()
    task = asyncio.create_task(one.group.run(ADDRESS))
    await asyncio.sleep(0)
    one.started[1].end.set_exception(ShardLostError("it has died"))
    with pytest.raises(ShardLostError, match="it has died"):
        await task
    return one


async def test_one_that_is_lost_is_replaced_and_the_others_are_not_made_again(running: Group) -> None:
    first, lost, last = running.started
    first.end.set_result(None)
    last.end.set_exception(PeerLostError("another is gone"))
    assert await running.group.renew(frozenset())
    assert [process.is_killed for process in running.started] == [False, True, False]
    await running.group.start()
    replacement = running.started[3]
    assert replacement.place == lost.place
    assert replacement.calls == ["create", "load"]
    assert first.calls == ["create", "open_store", "load", "leave", "move", "open_store", "load"]
    assert last.calls == ["create", "load", "leave", "move", "load"]
    assert running.group.times.num_kept == 2


async def test_one_that_does_not_leave_in_time_is_replaced_as_well(
    running: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_shard_group, "LEAVE_S", 0.5)
    running.started[0].end.set_result(None)
    assert await running.group.renew(frozenset())
    assert [process.is_killed for process in running.started] == [False, True, True]


async def test_a_silent_one_is_ended_before_the_others_are_waited_for(running: Group) -> None:
    first, _lost, silent = running.started

    def free_the_first() -> None:
        FakeProcess.kill(silent)
        first.end.set_exception(PeerLostError("its connection is closed"))

    silent.kill = free_the_first  # type: ignore[method-assign]
    assert await running.group.renew(frozenset({2}))
    assert [process.is_killed for process in running.started] == [False, True, True]


async def test_one_that_failed_itself_does_not_stay(running: Group) -> None:
    for index in (0, 2):
        running.started[index].end.set_exception(ValueError("its own"))
    assert not await running.group.renew(frozenset())
    assert all(process.is_killed for process in running.started)


async def test_none_stays_when_all_are_suspects(running: Group) -> None:
    assert not await running.group.renew(frozenset(range(NUM_SHARDS)))
    assert all(process.is_killed for process in running.started)


async def test_ranks_of_a_stage_share_a_node_in_whatever_order_ray_has_placed_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = Group(["here", "there", "here", "there"], tensor=2)
    await one.group.start()
    first, _second, third, _fourth = one.started
    assert [process.calls.count("open_store") for process in one.started] == [1, 0, 0, 0]
    assert {first.node, third.node} == {"here"}
    assert one.group.nodes == ["here", "here", "there", "there"]
    assert "straddles" not in caplog.text


async def test_a_stage_over_two_nodes_is_told(caplog: pytest.LogCaptureFixture) -> None:
    one = Group(["here", "there"], tensor=2)
    await one.group.start()
    assert "tensor group straddles nodes model=demo stage=0 nodes=here, there" in caplog.text
