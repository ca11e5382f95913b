"""How a shard's run ends when it is to leave its group."""

import asyncio
import threading

import pytest

from serve_app.engine.shard_loop import ShardLoop
from serve_app.errors import PeerLostError
from serve_app.types.steps import StepInput, StepOutput
from serve_app.wire.control_link import ControlClient, ControlServer
from serve_app.wire.links import LOOPBACK
from tests.fakes_links import next_message


class Stuck:
    """A step that waits for another shard, until the group is aborted."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.is_aborted = threading.Event()

    def run(self, _step: StepInput) -> StepOutput | None:
        """Wait."""
        self.has_begun.set()
        assert self.is_aborted.wait(30)
        raise PeerLostError("aborted")


async def begin(server: ControlServer, stuck: Stuck) -> "asyncio.Task[None]":
    loop = ShardLoop(ControlClient(server.address, 0), free=stuck.is_aborted.set)
    running = asyncio.create_task(asyncio.to_thread(loop.run, StepInput, stuck))
    await asyncio.wait_for(next_message(server), 10)  # its greeting
    return running


async def test_a_step_that_waits_for_one_that_is_gone_is_freed() -> None:
    server, stuck = ControlServer(LOOPBACK, 1, 1), Stuck()
    try:
        running = await begin(server, stuck)
        server.send_step(StepInput(0, [], [], [], [], [], [], []))
        assert await asyncio.to_thread(stuck.has_begun.wait, 10)
        for _ in range(50):  # what is sent before the link to leave by is up is lost, so a Router does the same
            server.send_leave()
            if (await asyncio.wait([running], timeout=0.2))[0]:
                break
        with pytest.raises(PeerLostError):
            await asyncio.wait_for(running, 10)
    finally:
        stuck.is_aborted.set()
        server.close()


async def test_a_shard_that_waits_for_steps_ends_its_run() -> None:
    server, stuck = ControlServer(LOOPBACK, 1, 1), Stuck()
    try:
        running = await begin(server, stuck)
        server.send_leave()
        await asyncio.wait_for(running, 10)
    finally:
        server.close()


async def test_a_run_that_is_stopped_aborts_nothing() -> None:
    server, stuck = ControlServer(LOOPBACK, 1, 1), Stuck()
    try:
        running = await begin(server, stuck)
        server.send_stop()
        await asyncio.wait_for(running, 10)
        assert not stuck.is_aborted.is_set()
    finally:
        server.close()
