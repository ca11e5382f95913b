"""A socket on an event loop, over real ZeroMQ."""

import asyncio
import contextlib
import itertools
import select
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import zmq

from serve_app.wire.loop_socket import LoopSocket
from tests.fakes_links import soon

LIMIT_S = 10.0
LIMIT_MS = 10_000
LOOPBACK = "tcp://127.0.0.1"


class CountingSocket(LoopSocket):
    """Counts how often the loop has called it."""

    num_notices = 0

    def _notice(self) -> None:
        self.num_notices += 1
        super()._notice()


@dataclass
class Pair:
    """A bound socket on the loop, and who connects to it."""

    context: "zmq.Context[zmq.Socket[bytes]]" = field(default_factory=zmq.Context)
    made: list[LoopSocket] = field(default_factory=list)
    peers: list["zmq.Socket[bytes]"] = field(default_factory=list)

    def bind(self, kind: int, **options: int) -> tuple[CountingSocket, "zmq.Socket[bytes]", str]:
        """The socket, the same without the loop, and where it is."""
        raw = self.context.socket(kind)
        for name, value in options.items():
            setattr(raw, name, value)
        port = raw.bind_to_random_port(LOOPBACK)
        made = CountingSocket(raw)
        self.made.append(made)
        return made, raw, f"{LOOPBACK}:{port}"

    def connect(self, kind: int, endpoint: str, **options: Any) -> "zmq.Socket[bytes]":
        """A peer."""
        peer = self.context.socket(kind)
        for name, value in options.items():
            setattr(peer, name, value)
        peer.connect(endpoint)
        self.peers.append(peer)
        return peer


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    yield made
    for one in made.made:
        one.close()
    made.context.destroy(linger=0)


def send_much(socket: LoopSocket) -> None:
    """More than a peer that does not read has room for."""
    for _ in range(100_000):
        socket.send((b"x" * 100_000,))


class Taken:
    """What was delivered, until as much has come as is waited for."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self._changed = asyncio.Event()

    def __call__(self, frame: bytes) -> None:
        self.frames.append(frame)
        self._changed.set()

    async def wait_for(self, count: int) -> list[bytes]:
        """The first so many."""
        async with asyncio.timeout(LIMIT_S):
            while len(self.frames) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.frames[:count]


@contextlib.asynccontextmanager
async def delivering(socket: LoopSocket, take: Callable[[bytes], None]) -> "AsyncIterator[asyncio.Task[None]]":
    task = asyncio.create_task(socket.deliver(take))
    for _ in range(2):  # it begins, and takes what is there
        await asyncio.sleep(0)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def has_news(raw: "zmq.Socket[bytes]") -> bool:
    """Wait until the descriptor says so, without a call on the socket."""
    return bool(select.select([raw.fileno()], [], [], LIMIT_S)[0])


async def test_many_messages_at_once_come_in_order_and_others_have_their_turn(pair: Pair) -> None:
    socket, raw, endpoint = pair.bind(zmq.PULL)
    peer = pair.connect(zmq.PUSH, endpoint)
    messages = [b"%d" % index for index in range(900)]
    for message in messages:
        peer.send(message)
    assert raw.poll(LIMIT_MS)
    taken, seen_by_others = Taken(), []
    async with delivering(socket, taken):
        while len(taken.frames) < len(messages):
            seen_by_others.append(len(taken.frames))
            await asyncio.sleep(0)
    assert taken.frames == messages
    assert max(later - earlier for earlier, later in itertools.pairwise(seen_by_others)) <= 64


async def test_sends_beside_many_messages_leave_others_their_turn(pair: Pair) -> None:
    socket, raw, endpoint = pair.bind(zmq.ROUTER)
    peer = pair.connect(zmq.DEALER, endpoint, identity=b"peer")
    taken, seen_by_others = Taken(), []
    async with delivering(socket, taken):
        peer.send(b"first")
        await taken.wait_for(1)
        for index in range(900):
            peer.send(b"%d" % index)
        assert raw.poll(LIMIT_MS)
        for _ in range(40):
            socket.send((b"peer", b"answer"))
        while len(taken.frames) <= 900:
            seen_by_others.append(len(taken.frames))
            await asyncio.sleep(0)
    assert max(later - earlier for earlier, later in itertools.pairwise(seen_by_others)) <= 128


async def test_a_send_that_is_refused_has_what_came_read(pair: Pair) -> None:
    socket, raw, endpoint = pair.bind(zmq.DEALER, sndhwm=1)
    taken = Taken()
    async with delivering(socket, taken):
        peer = pair.connect(zmq.DEALER, endpoint, rcvhwm=1)
        peer.send(b"first")
        await taken.wait_for(1)
        with pytest.raises(zmq.Again):
            send_much(socket)
        peer.send(b"second")
        assert raw.poll(LIMIT_MS)
        with pytest.raises(zmq.Again):
            send_much(socket)
        assert (await taken.wait_for(2))[-1] == b"second"


@pytest.mark.parametrize(
    ("kind", "peer_kind", "expected"),
    [(zmq.ROUTER, zmq.DEALER, [b"c", b"d"]), (zmq.PULL, zmq.PUSH, [b"a", b"b", b"c", b"d"])],
    ids=["of a ROUTER the last", "of others each"],
)
async def test_frames_of_a_message(pair: Pair, kind: int, peer_kind: int, expected: list[bytes]) -> None:
    socket, _raw, endpoint = pair.bind(kind)
    peer = pair.connect(peer_kind, endpoint)
    peer.send_multipart([b"a", b"b", b"c"])
    peer.send(b"d")
    assert [await soon(socket) for _ in expected] == expected


async def test_a_send_that_takes_the_word_of_a_message_away_has_it_read(pair: Pair) -> None:
    socket, raw, endpoint = pair.bind(zmq.ROUTER)
    peer = pair.connect(zmq.DEALER, endpoint, identity=b"peer")
    taken = Taken()
    async with delivering(socket, taken):
        peer.send(b"hello")
        await taken.wait_for(1)
        for index in range(20):
            peer.send(b"%d" % index)
            assert raw.poll(LIMIT_MS)  # ZeroMQ has noticed it, and says no more of it
            socket.send((b"peer", b"answer"))
            assert (await taken.wait_for(index + 2))[-1] == b"%d" % index
    assert peer.recv() == b"answer"


async def test_what_is_taken_may_answer_at_once(pair: Pair) -> None:
    socket, _raw, endpoint = pair.bind(zmq.ROUTER)
    peer = pair.connect(zmq.DEALER, endpoint, identity=b"peer")
    taken = Taken()

    def answer(frame: bytes) -> None:
        socket.send((b"peer", frame))
        taken(frame)

    async with delivering(socket, answer):
        for index in range(200):
            peer.send(b"%d" % index)
        await taken.wait_for(200)
    assert [peer.recv() for _ in range(200)] == taken.frames


async def test_a_peer_that_takes_no_more_holds_up_nobody(pair: Pair) -> None:
    socket, _raw, endpoint = pair.bind(zmq.ROUTER, sndhwm=5, sndbuf=4096)
    full = pair.connect(zmq.DEALER, endpoint, identity=b"full", rcvhwm=5, rcvbuf=4096)
    other = pair.connect(zmq.DEALER, endpoint, identity=b"other")
    for peer in (full, other):
        peer.send(b"hello")
        assert await soon(socket) == b"hello"
    for _ in range(2000):
        socket.send((b"full", bytes(10_000)))  # a ROUTER drops what finds no room
    socket.send((b"other", b"word"))
    assert other.poll(LIMIT_MS)
    assert other.recv() == b"word"
    full.send(b"still here")
    assert await soon(socket) == b"still here"


async def test_a_full_pipe_is_told_and_nothing_that_was_taken_is_lost(pair: Pair) -> None:
    _socket, raw, endpoint = pair.bind(zmq.PULL, rcvhwm=10)
    sender = LoopSocket(pair.connect(zmq.PUSH, endpoint, sndhwm=10))
    pair.made.append(sender)
    num_taken = 0
    with contextlib.suppress(zmq.Again):
        while num_taken < 10_000:
            sender.send((b"%d" % num_taken, bytes(100_000)))
            num_taken += 1
    assert 10 <= num_taken < 10_000
    for index in range(num_taken):
        assert raw.poll(LIMIT_MS)
        assert raw.recv_multipart()[0] == b"%d" % index


async def test_closing_cancels_who_waits_and_leaves_nothing_on_the_loop(pair: Pair) -> None:
    socket, raw, _endpoint = pair.bind(zmq.PULL)
    descriptor = raw.fileno()
    async with delivering(socket, Taken()) as waiting:
        socket.close()
        socket.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert not asyncio.get_running_loop().remove_reader(descriptor)


async def test_what_is_taken_may_close_the_socket(pair: Pair) -> None:
    socket, raw, endpoint = pair.bind(zmq.PULL)
    peer = pair.connect(zmq.PUSH, endpoint)
    taken: list[bytes] = []

    def close(frame: bytes) -> None:
        taken.append(frame)
        socket.close()

    for message in (b"a", b"b"):
        peer.send(message)
    assert raw.poll(LIMIT_MS)
    with pytest.raises(asyncio.CancelledError):
        await socket.deliver(close)
    assert taken == [b"a"]


@pytest.mark.parametrize("last", [1, 70], ids=["in its first round", "in a later one"])
async def test_one_that_is_cancelled_by_a_message_takes_no_further_one(pair: Pair, last: int) -> None:
    socket, raw, endpoint = pair.bind(zmq.PULL)
    peer = pair.connect(zmq.PUSH, endpoint)
    for index in range(100):
        peer.send(b"%d" % index)
    assert raw.poll(LIMIT_MS)
    taken: list[bytes] = []

    def cancel(frame: bytes) -> None:
        taken.append(frame)
        if len(taken) == last:
            waiting.cancel()

    waiting = asyncio.create_task(socket.deliver(cancel))
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(taken) == last
    assert await soon(socket) == b"%d" % last


async def test_one_that_is_cancelled_leaves_the_message(pair: Pair) -> None:
    socket, raw, endpoint = pair.bind(zmq.PULL)
    peer = pair.connect(zmq.PUSH, endpoint)
    for index in range(20):
        taken = Taken()
        async with delivering(socket, taken) as waiting:
            peer.send(b"%d" % index)
            assert raw.poll(LIMIT_MS)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert taken.frames == []
        assert await soon(socket) == b"%d" % index


async def test_what_one_reader_leaves_the_next_one_finds(pair: Pair) -> None:
    socket, raw, endpoint = pair.bind(zmq.PULL)
    peer = pair.connect(zmq.PUSH, endpoint)
    first, second = Taken(), Taken()

    def fail(frame: bytes) -> None:
        first(frame)
        raise ValueError(frame.decode())

    for message in (b"a", b"b", b"c"):
        peer.send(message)
    assert raw.poll(LIMIT_MS)
    with pytest.raises(ValueError, match="a"):
        await socket.deliver(fail)
    async with delivering(socket, second):
        assert await second.wait_for(2) == [b"b", b"c"]
    assert first.frames == [b"a"]


@pytest.mark.parametrize(
    ("error", "told"), [(StopIteration("a"), RuntimeError), (asyncio.CancelledError("a"), asyncio.CancelledError)]
)
async def test_errors_that_a_future_refuses_end_a_delivery_too(
    error: BaseException, told: type[BaseException], pair: Pair
) -> None:
    socket, _raw, endpoint = pair.bind(zmq.PULL)
    peer = pair.connect(zmq.PUSH, endpoint)

    def fail(_frame: bytes) -> None:
        raise error

    peer.send(b"a")
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(told):
            await socket.deliver(fail)


async def test_a_peer_that_dies_takes_nobody_with_it(pair: Pair) -> None:
    socket, _raw, endpoint = pair.bind(zmq.ROUTER)
    with zmq.Context() as other_process:
        dying = other_process.socket(zmq.DEALER)
        dying.setsockopt(zmq.IDENTITY, b"dying")
        dying.connect(endpoint)
        dying.send(b"last words")
        assert await soon(socket) == b"last words"
        dying.close(linger=0)
    socket.send((b"dying", b"to nobody"))
    peer = pair.connect(zmq.DEALER, endpoint, identity=b"peer")
    peer.send(b"word")
    assert await soon(socket) == b"word"


async def test_a_message_that_nobody_has_asked_for_does_not_keep_the_loop_busy(pair: Pair) -> None:
    socket, raw, endpoint = pair.bind(zmq.PULL)
    peer = pair.connect(zmq.PUSH, endpoint)
    peer.send(b"first")
    assert await soon(socket) == b"first"
    async with delivering(socket, Taken()):
        pass  # nothing is left, so that the next message is told by the descriptor
    peer.send(b"second")
    assert has_news(raw)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert socket.num_notices <= 50  # one that is told again and again is called in each of the 1,000 rounds
    assert await soon(socket) == b"second"


async def test_only_one_reads_at_a_time(pair: Pair) -> None:
    socket, _raw, _endpoint = pair.bind(zmq.PULL)
    async with delivering(socket, Taken()):
        with pytest.raises(AssertionError):
            await socket.deliver(Taken())
