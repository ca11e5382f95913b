"""The control link over real sockets."""

import asyncio
import threading
from dataclasses import replace

import msgspec
import pytest
import zmq

from serve_app.types.plans import MemoryTaken
from serve_app.types.steps import BatchStep, GrammarChange, StepInput, StepOutput
from serve_app.wire.control_link import ControlAddress, ControlClient, ControlServer
from serve_app.wire.links import LOOPBACK
from serve_app.wire.messages import (
    PROTOCOL_VERSION,
    GrammarReadyMessage,
    HeartbeatMessage,
    HelloMessage,
    Message,
    OutputMessage,
    StepMessage,
    StopMessage,
    ToRouter,
)
from tests.fakes_links import EPOCH, GARBAGE, Strangers, soon

STEP = StepInput(0, [], [1], [1], [3], [[2]], [7], [True])


def run_shard(address: ControlAddress, index: int, received: list[StepInput | BatchStep | None]) -> threading.Thread:
    """A shard that says hello, answers its steps and ends when told to."""

    def run() -> None:
        client = ControlClient(address, index)
        client.send_hello()
        client.heartbeat_sender()(17, 0.5, MemoryTaken(64, 4096))
        while (step := client.receive()) is not None:
            if isinstance(step, GrammarChange):
                client.grammar_sender()(step.number)
                continue
            received.append(step)
            client.send_output(StepOutput(step.step_id, [9]))
        received.append(None)
        client.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


async def test_a_shard_s_whole_life_passes_over_the_control_link(server: ControlServer) -> None:
    received: list[list[StepInput | BatchStep | None]] = [[], []]
    threads = [run_shard(server.address, index, received[index]) for index in range(2)]
    greetings = [await soon(server) for _ in range(4)]
    head = {"version": PROTOCOL_VERSION, "epoch": EPOCH}
    for index in range(2):
        assert HelloMessage(**head, shard_index=index) in greetings
        memory = MemoryTaken(64, 4096)
        beat = HeartbeatMessage(**head, shard_index=index, num_steps_done=17, busy_s=0.5, memory=memory)
        assert beat in greetings
    server.send_step(STEP)
    for _ in range(2):
        assert await soon(server) == OutputMessage(**head, output=StepOutput(0, [9]))
    server.send_grammar(GrammarChange(7, "start: /a/"))
    for _ in range(2):
        assert await soon(server) == GrammarReadyMessage(**head, number=7)
    server.send_stop()
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()
    assert received == [[STEP, None], [STEP, None]]


@pytest.mark.parametrize(
    "stale",
    [
        HelloMessage(PROTOCOL_VERSION, EPOCH - 1, 0),
        HelloMessage(PROTOCOL_VERSION, EPOCH + 1, 0),
        HelloMessage(PROTOCOL_VERSION + 1, EPOCH, 0),
        OutputMessage(PROTOCOL_VERSION, EPOCH - 1, StepOutput(0, [9])),
    ],
    ids=["epoch before", "epoch after", "other version", "output of a life before"],
)
async def test_a_router_drops_what_is_not_of_its_epoch_and_version(
    server: ControlServer, strangers: Strangers, stale: ToRouter
) -> None:
    client = strangers.socket(zmq.DEALER, server.address.server_key.encode())
    client.connect(server.address.endpoint)
    client.send(msgspec.msgpack.encode(stale))
    fresh = HelloMessage(PROTOCOL_VERSION, EPOCH, 1)
    client.send(msgspec.msgpack.encode(fresh))
    assert await soon(server) == fresh


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_a_router_drops_what_it_cannot_read(server: ControlServer, strangers: Strangers, garbage: bytes) -> None:
    client = strangers.socket(zmq.DEALER, server.address.server_key.encode())
    client.connect(server.address.endpoint)
    fresh = HelloMessage(PROTOCOL_VERSION, EPOCH, 1)
    client.send(garbage)
    client.send_multipart([garbage, garbage, garbage])
    client.send(msgspec.msgpack.encode(fresh))
    assert await soon(server) == fresh


def test_a_shard_drops_what_is_not_of_its_epoch_and_version(strangers: Strangers) -> None:
    public_key, secret_key = zmq.curve_keypair()
    router = strangers.socket(zmq.ROUTER, None)
    router.curve_server, router.curve_secretkey = True, secret_key
    port = router.bind_to_random_port(f"tcp://{LOOPBACK}")
    client = ControlClient(ControlAddress(f"tcp://{LOOPBACK}:{port}", public_key.decode(), EPOCH), 1)
    client.send_hello()
    peer, _hello = router.recv_multipart()
    messages: list[Message] = [
        StepMessage(PROTOCOL_VERSION, EPOCH - 1, replace(STEP, step_id=1)),
        StepMessage(PROTOCOL_VERSION + 1, EPOCH, replace(STEP, step_id=2)),
        StopMessage(PROTOCOL_VERSION, EPOCH - 1),
        StepMessage(PROTOCOL_VERSION, EPOCH, replace(STEP, step_id=3)),
        StopMessage(PROTOCOL_VERSION, EPOCH),
    ]
    for message in messages:
        router.send_multipart([peer, msgspec.msgpack.encode(message)])
    assert client.receive() == replace(STEP, step_id=3)
    assert client.receive() is None
    client.close()


async def test_a_shard_of_the_life_before_gets_no_steps(server: ControlServer) -> None:
    old = ControlClient(replace(server.address, epoch=EPOCH - 1), 0)
    received: list[StepInput | BatchStep | None] = []
    current = run_shard(server.address, 0, received)
    old.send_hello()
    while not isinstance(await soon(server), HelloMessage):
        pass
    server.send_step(STEP)
    while not isinstance(await soon(server), OutputMessage):
        pass
    server.send_stop()
    await asyncio.to_thread(current.join, 10)
    assert old._socket.poll(200) == 0
    old.close()


def test_a_shard_that_is_interrupted_while_it_closes_ends_its_link_once(server: ControlServer) -> None:
    for _ in range(100):
        client = ControlClient(server.address, 0)
        enders = [threading.Thread(target=client.interrupt) for _ in range(2)]
        for thread in enders:
            thread.start()
        client.close()
        for thread in enders:
            thread.join(timeout=10)
            assert not thread.is_alive()
