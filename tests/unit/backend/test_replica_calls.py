"""Calls of a backend over the real links to replicas that are tasks of this process."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from serve_app.backend import known_replicas
from serve_app.backend.serve_backend import ServeBackend
from serve_app.errors import ModelNotFoundError, QueueFullError, RayshardError, UnavailableError, UnprocessableError
from serve_app.types.links import LinkAddress
from serve_app.types.tensors import InferRequest, InferResult, Item, TensorData
from serve_app.wire.messages import PROTOCOL_VERSION, Call, InferMessage, StateMessage
from tests.fakes_serve import FakeControl, FakeReplica, running_backend, states, until


class Cluster:
    """A backend and the replicas of one application."""

    def __init__(self, control: FakeControl, backend: ServeBackend) -> None:
        self.control = control
        self.backend = backend
        self.replicas: list[FakeReplica] = []

    async def add(self, name: str, state: str = "ready", *, can_answer: bool = True) -> FakeReplica:
        """Start a replica; returns when the backend knows of it."""
        replica = FakeReplica(name)
        if not can_answer:
            replica.may_answer.clear()
        self.replicas.append(replica)
        self.control.add("app", "Router", replica)
        await self.backend._applications.discover()  # which makes the application known
        replica.links.register(self.backend._own_address())
        replica.tell(state=state)
        await until(lambda: state in states(self.backend).get("m", []))
        await until(lambda: name in self.backend._calls("m", "Router")._replicas)
        return replica

    async def infer(self, request_id: str = "r", wait_s: float = 5.0, items: list[Item] | None = None) -> InferResult:
        """One call."""
        async with asyncio.timeout(10):
            return await self.backend.infer(InferRequest(request_id, "m", items or [], wait_s))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    control = FakeControl()
    async with running_backend(control) as backend:
        cluster = Cluster(control, backend)
        yield cluster
        for replica in cluster.replicas:
            replica.links.close()


async def test_a_call_is_answered(cluster: Cluster) -> None:
    replica = await cluster.add("a")
    assert await cluster.infer("one") == InferResult([])
    assert replica.taken == ["one"]


async def test_calls_go_to_the_least_busy_replica(cluster: Cluster) -> None:
    first, second = await cluster.add("a", can_answer=False), await cluster.add("b", can_answer=False)
    calls = [asyncio.create_task(cluster.infer(str(number))) for number in range(6)]
    await until(lambda: len(first.taken) + len(second.taken) == 6)
    assert (len(first.taken), len(second.taken)) == (3, 3)
    first.may_answer.set()
    second.may_answer.set()
    await asyncio.gather(*calls)


async def test_many_entries_go_in_pieces_over_all_replicas_and_keep_their_order(cluster: Cluster) -> None:
    first, second = await cluster.add("a"), await cluster.add("b")
    items = [{"x": TensorData("uint8", (1,), bytes([index]))} for index in range(200)]
    assert (await cluster.infer(items=items)).outputs == items
    assert len(first.taken) + len(second.taken) == 7
    assert first.taken
    assert second.taken


async def test_the_replicas_own_error_reaches_the_caller_with_its_fields(cluster: Cluster) -> None:
    replica = await cluster.add("a")
    replica.fails_with = UnprocessableError("too long", field="input[3]")
    with pytest.raises(UnprocessableError, match="too long") as caught:
        await cluster.infer()
    assert caught.value.field == "input[3]"
    replica.fails_with = QueueFullError("full", retry_after_s=2.5)
    with pytest.raises(QueueFullError) as full:
        await cluster.infer()
    assert full.value.retry_after_s == 2.5


async def test_an_unexpected_error_is_told_by_its_kind_alone(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    replica = await cluster.add("a")
    replica.fails_with = KeyError("the client's own words")
    with pytest.raises(RayshardError) as caught:
        await cluster.infer()
    assert "KeyError" in caught.value.message
    assert "own words" not in caught.value.message + caplog.text
    assert "KeyError" in caplog.text


async def test_a_cancelled_call_is_cancelled_at_the_replica(cluster: Cluster) -> None:
    replica = await cluster.add("a", can_answer=False)
    call = asyncio.create_task(cluster.infer("gone"))
    await until(lambda: replica.taken)
    call.cancel()
    await until(lambda: replica.cancelled == ["gone"])
    replica.may_answer.set()
    await cluster.infer("next")


async def test_calls_of_a_replica_that_falls_silent_go_to_another(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_replicas, "FRESH_S", 0.8)
    monkeypatch.setattr(known_replicas, "LOST_S", 1.2)
    silent = await cluster.add("a", can_answer=False)
    call = asyncio.create_task(cluster.infer("kept"))
    await until(lambda: silent.taken)
    silent.die()
    other = await cluster.add("b")
    await call
    assert other.taken == ["kept"]


async def test_a_replica_that_stood_still_drops_the_calls_that_were_taken_from_it(cluster: Cluster) -> None:
    stopped = await cluster.add("a", can_answer=False)
    call = asyncio.create_task(cluster.infer("moved"))
    await until(lambda: stopped.taken)
    other = await cluster.add("b")
    stopped.stand_still()
    known = cluster.backend._calls("m", "Router")
    known._replicas["a"].told_s -= 60.0
    known.sweep()
    await call
    assert other.taken == ["moved"]
    assert stopped.cancelled == []  # it has not heard of it
    stopped.links.start()
    await until(lambda: stopped.cancelled == ["moved"])


async def test_calls_of_a_process_that_another_has_taken_the_name_of_go_to_that_one(cluster: Cluster) -> None:
    before = await cluster.add("a", can_answer=False)
    call = asyncio.create_task(cluster.infer("kept"))
    await until(lambda: before.taken)
    before.die()
    after = await cluster.add("a")
    await asyncio.wait_for(call, 5)
    assert after.taken == ["kept"]
    sockets = cluster.backend._senders._sockets
    assert after.links._receiver.address.server_key in sockets
    assert before.links._receiver.address.server_key not in sockets, "a socket to the dead one, which nobody forgets"


async def test_the_late_farewell_of_a_process_does_not_end_the_one_that_has_taken_its_name(cluster: Cluster) -> None:
    before = await cluster.add("a")
    old_address = before.links._receiver.address
    before.stand_still()
    after = await cluster.add("a", can_answer=False)
    call = asyncio.create_task(cluster.infer("kept"))
    await until(lambda: after.taken)
    applications = cluster.backend._applications
    gone = replace(before.state, state="gone")
    applications.take_state(StateMessage(PROTOCOL_VERSION, 0, "app", gone, "Router", old_address, None))
    assert states(cluster.backend) == {"m": ["ready"]}
    assert cluster.backend._calls("m", "Router").heard == {"a"}
    after.may_answer.set()
    await asyncio.wait_for(call, 5)
    assert after.taken == ["kept"], "it was not asked again"
    new_address = after.links._receiver.address
    applications.take_state(StateMessage(PROTOCOL_VERSION, 0, "app", gone, "Router", new_address, None))
    assert states(cluster.backend) == {"m": []}
    assert not cluster.backend._calls("m", "Router").heard


async def test_calls_of_a_replica_that_says_it_goes_move_at_once(cluster: Cluster) -> None:
    leaving, other = await cluster.add("a", can_answer=False), await cluster.add("b")
    calls = [asyncio.create_task(cluster.infer(str(number))) for number in range(4)]
    await until(lambda: len(leaving.taken) == 2)
    leaving.tell(state="gone")
    await asyncio.gather(*calls)
    assert sorted(other.taken) == ["0", "1", "2", "3"]


async def test_a_replica_that_drains_ends_its_calls_and_is_given_no_more(cluster: Cluster) -> None:
    leaving, other = await cluster.add("a", can_answer=False), await cluster.add("b", can_answer=False)
    calls = [asyncio.create_task(cluster.infer(str(number))) for number in range(2)]
    await until(lambda: len(leaving.taken) == len(other.taken) == 1)
    draining = asyncio.create_task(leaving.links.drain())
    await until(lambda: states(cluster.backend)["m"].count("draining") == 1)
    calls += [asyncio.create_task(cluster.infer(str(number))) for number in range(2, 5)]
    await until(lambda: len(other.taken) == 4)
    assert not draining.done()
    leaving.may_answer.set()
    await draining
    other.may_answer.set()
    await asyncio.gather(*calls)
    assert len(leaving.taken) == 1


async def test_a_call_waits_for_a_replica_to_become_ready(cluster: Cluster) -> None:
    replica = await cluster.add("a", "rebuilding")
    call = asyncio.create_task(cluster.infer())
    await asyncio.sleep(0.05)
    assert replica.taken == []
    replica.tell(state="ready")
    await call


async def test_without_a_ready_replica_a_call_ends_in_time(cluster: Cluster) -> None:
    await cluster.add("a", "failed")
    with pytest.raises(UnavailableError, match=r"within 0\.1 s"):
        await cluster.infer(wait_s=0.1)


async def test_a_model_that_nobody_serves_is_told(cluster: Cluster) -> None:
    with pytest.raises(ModelNotFoundError, match="m is not served any more"):
        await cluster.infer()


async def test_a_pause_of_this_process_is_not_the_replicas_silence(cluster: Cluster) -> None:
    replica = await cluster.add("a", can_answer=False)
    call = asyncio.create_task(cluster.infer("kept"))
    await until(lambda: replica.taken)
    calls = cluster.backend._calls("m", "Router")
    for known in calls._replicas.values():
        known.told_s -= 60.0  # as after a minute of standing still
    calls.sweep(late_s=60.0)
    replica.may_answer.set()
    await call
    assert replica.taken == ["kept"]


async def test_serve_is_told_of_as_many_calls_as_there_are(cluster: Cluster) -> None:
    replica = await cluster.add("a", can_answer=False)
    calls = [asyncio.create_task(cluster.infer(str(number))) for number in range(3)]
    await until(lambda: cluster.control.held == [("app", "Router")] * 3)
    replica.may_answer.set()
    await asyncio.gather(*calls)
    await asyncio.sleep(0.6)
    assert len(cluster.control.held) == 3  # and no more than that


async def test_what_is_left_of_a_requests_time_travels_with_each_of_its_pieces(cluster: Cluster) -> None:
    items = [{"x": TensorData("uint8", (1,), bytes([index]))} for index in range(100)]
    request = InferRequest("r", "m", items, queue_timeout_s=5.0, priority=4, time_left_s=60.0)
    replica = await cluster.add("a", state="rebuilding")
    calling = asyncio.create_task(cluster.backend.infer(request))
    await asyncio.sleep(0.05)
    replica.tell(state="ready")
    await calling
    assert len(replica.requests) > 1
    for piece in replica.requests:
        assert piece.priority == 4
        assert piece.time_left_s is not None
        assert 10 < piece.time_left_s <= 59.95


async def test_each_replica_is_asked_and_those_that_fail_are_late_or_die_are_left_out(cluster: Cluster) -> None:
    replicas = [await cluster.add(name) for name in "abcde"]
    replicas[0].tell(state="draining")
    replicas[1].fails_with = UnprocessableError("not today")
    for late in replicas[2:4]:
        late.may_answer.clear()
    calls = cluster.backend._calls("m", "Router")

    def ask(number: int, reply_to: LinkAddress) -> Call:
        return InferMessage(PROTOCOL_VERSION, 0, number, reply_to, InferRequest("r", "m", [], 5.0))

    asking = asyncio.create_task(calls.call_each(ask, 0.3))
    await until(lambda: replicas[3].taken)
    calls._drop("d")
    assert len(await asking) == 2
    assert [one.taken for one in replicas] == [["r"]] * 5
    await until(lambda: replicas[2].cancelled)
