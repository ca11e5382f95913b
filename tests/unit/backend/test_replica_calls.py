"""Calls over the real call link to replicas that are tasks of this process."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from serve_app.backend import replica_calls
from serve_app.backend.replica_calls import ReplicaCalls
from serve_app.deployments.call_server import CallServer, GatewayLinks
from serve_app.errors import QueueFullError, RayshardError, UnavailableError, UnprocessableError
from serve_app.types.links import LinkAddress
from serve_app.types.models import CopyState
from serve_app.types.tensors import InferRequest, InferResult
from serve_app.wire.links import LOOPBACK, CallReceiver, Senders, TokenLinks, TokenReceiver
from serve_app.wire.messages import PROTOCOL_VERSION, Call, InferMessage, InferReply, Reply, StateMessage, TokenBatch


@dataclass(eq=False)
class Replica:
    """A replica of a deployment; `may_answer` holds its answers back."""

    name: str
    gateway: LinkAddress
    fails_with: Exception | None = None
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    taken: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.receiver = CallReceiver(LOOPBACK)
        self.links = TokenLinks(self.name, LOOPBACK)
        self.server = CallServer(self.receiver, self.links, self.answer)
        self.task = asyncio.create_task(self.server.run())
        self.gateways = GatewayLinks(self.links, "app", "Router", self.receiver)

    async def answer(self, message: Call) -> Reply:
        """The reply to a call."""
        assert isinstance(message, InferMessage)
        request_id = message.request.request_id
        self.taken.append(request_id)
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request_id)
            raise
        if self.fails_with is not None:
            raise self.fails_with
        return InferReply(PROTOCOL_VERSION, 0, message.stream, InferResult([]))

    def tell(self, state: str = "ready") -> None:
        """Tell the Gateway how this replica is."""
        self.gateways.register(self.gateway, 0, CopyState(self.name, state, "", 0, 0, 0, 0))  # type: ignore[arg-type]

    async def close(self) -> None:
        """End it."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.receiver.close()
        self.links.close()


class GatewaySide:
    """What ServeBackend does, without Serve."""

    def __init__(self) -> None:
        self.receiver = TokenReceiver(LOOPBACK)
        self.senders = Senders(LOOPBACK)
        numbers = itertools.count()
        self.calls = ReplicaCalls(self.senders, lambda: self.receiver.address, lambda: next(numbers))
        self.task = asyncio.create_task(self._receive())
        self.replicas: list[Replica] = []

    async def add(self, name: str, state: str = "ready", *, can_answer: bool = True) -> Replica:
        """Start a replica; returns when its state is known."""
        replica = Replica(name, self.receiver.address)
        if can_answer:
            replica.may_answer.set()
        self.replicas.append(replica)
        replica.tell(state)
        await until(lambda: name in self.calls._replicas)
        return replica

    async def infer(self, request_id: str = "r", wait_s: float = 5.0) -> Reply:
        """One call."""

        def make(number: int, reply_to: LinkAddress) -> Call:
            return InferMessage(PROTOCOL_VERSION, 0, number, reply_to, InferRequest(request_id, "m", []))

        async with asyncio.timeout(10):
            return await self.calls.call(make, wait_s)

    async def _receive(self) -> None:
        while True:
            message = await self.receiver.receive()
            assert not isinstance(message, TokenBatch)
            if isinstance(message, StateMessage):
                state = message.state
                self.calls.see(
                    state.replica_id,
                    message.calls,
                    is_ready=state.state == "ready",
                    is_gone=state.state == "gone",
                )
            else:
                self.calls.take_reply(message)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


@pytest.fixture
async def gateway() -> AsyncIterator[GatewaySide]:
    side = GatewaySide()
    yield side
    for replica in side.replicas:
        await replica.close()
    side.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await side.task
    side.receiver.close()
    side.senders.close()


async def test_a_call_is_answered(gateway: GatewaySide) -> None:
    replica = await gateway.add("a")
    reply = await gateway.infer("one")
    assert isinstance(reply, InferReply)
    assert replica.taken == ["one"]
    assert gateway.calls.num_calls == 0


async def test_calls_go_to_the_least_busy_replica(gateway: GatewaySide) -> None:
    first, second = await gateway.add("a", can_answer=False), await gateway.add("b", can_answer=False)
    calls = [asyncio.create_task(gateway.infer(str(number))) for number in range(6)]
    await until(lambda: len(first.taken) + len(second.taken) == 6)
    assert (len(first.taken), len(second.taken)) == (3, 3)
    first.may_answer.set()
    second.may_answer.set()
    await asyncio.gather(*calls)


async def test_the_replicas_own_error_reaches_the_caller_with_its_fields(gateway: GatewaySide) -> None:
    replica = await gateway.add("a")
    replica.fails_with = UnprocessableError("too long", field="input[3]")
    with pytest.raises(UnprocessableError, match="too long") as caught:
        await gateway.infer()
    assert caught.value.field == "input[3]"
    replica.fails_with = QueueFullError("full", retry_after_s=2.5)
    with pytest.raises(QueueFullError) as full:
        await gateway.infer()
    assert full.value.retry_after_s == 2.5


async def test_an_unexpected_error_is_told_by_its_kind_alone(
    gateway: GatewaySide, caplog: pytest.LogCaptureFixture
) -> None:
    replica = await gateway.add("a")
    replica.fails_with = KeyError("the client's own words")
    with pytest.raises(RayshardError) as caught:
        await gateway.infer()
    assert "KeyError" in caught.value.message
    assert "own words" not in caught.value.message + caplog.text
    assert "KeyError" in caplog.text


async def test_a_cancelled_call_is_cancelled_at_the_replica(gateway: GatewaySide) -> None:
    replica = await gateway.add("a", can_answer=False)
    call = asyncio.create_task(gateway.infer("gone"))
    await until(lambda: replica.taken)
    call.cancel()
    await until(lambda: replica.cancelled == ["gone"])
    assert replica.server.keys_in_use == set()
    replica.may_answer.set()
    await gateway.infer("next")


async def test_calls_of_a_replica_that_falls_silent_go_to_another(
    gateway: GatewaySide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_calls, "FRESH_S", 0.3)
    silent = await gateway.add("a", can_answer=False)
    call = asyncio.create_task(gateway.infer("kept"))
    await until(lambda: silent.taken)
    await silent.close()
    await asyncio.sleep(0.4)
    other = await gateway.add("b")
    gateway.calls.sweep()
    assert isinstance(await call, InferReply)
    assert other.taken == ["kept"]


async def test_calls_of_a_replica_that_says_it_goes_move_at_once(gateway: GatewaySide) -> None:
    leaving, other = await gateway.add("a", can_answer=False), await gateway.add("b")
    calls = [asyncio.create_task(gateway.infer(str(number))) for number in range(4)]
    await until(lambda: len(leaving.taken) == 2)
    leaving.tell("gone")
    await asyncio.gather(*calls)
    assert sorted(other.taken) == ["0", "1", "2", "3"]


async def test_a_call_waits_for_a_replica_to_become_ready(gateway: GatewaySide) -> None:
    replica = await gateway.add("a", "rebuilding")
    call = asyncio.create_task(gateway.infer())
    await asyncio.sleep(0.05)
    assert replica.taken == []
    replica.tell("ready")
    assert isinstance(await call, InferReply)


async def test_without_a_ready_replica_a_call_ends_in_time(gateway: GatewaySide) -> None:
    await gateway.add("a", "failed")
    with pytest.raises(UnavailableError, match=r"within 0\.1 s"):
        await gateway.infer(wait_s=0.1)


async def test_the_peak_of_calls_is_what_autoscaling_is_told(gateway: GatewaySide) -> None:
    replica = await gateway.add("a", can_answer=False)
    calls = [asyncio.create_task(gateway.infer(str(number))) for number in range(3)]
    await until(lambda: len(replica.taken) == 3)
    replica.may_answer.set()
    await asyncio.gather(*calls)
    assert gateway.calls.take_peak() == 3
    assert gateway.calls.take_peak() == 0
