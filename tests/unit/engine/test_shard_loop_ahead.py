"""The loop that launches steps ahead, over the real control link."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from serve_app.engine.shard_loop import ShardLoop
from serve_app.types.steps import StepInput, StepOutput
from serve_app.wire.control_link import ControlClient, ControlServer
from serve_app.wire.links import LOOPBACK
from serve_app.wire.messages import HelloMessage, OutputMessage
from tests.fakes_links import next_message

WAIT_S = 20


@dataclass(slots=True)
class Pending:
    """An output that is there when a test says so."""

    step_id: int
    error: Exception | None = None
    is_there: threading.Event = field(default_factory=threading.Event)

    def output(self) -> StepOutput:
        assert self.is_there.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        return StepOutput(self.step_id, [self.step_id])


class Launcher:
    """StepLauncher whose steps end when a test says so."""

    def __init__(self, fails_at: int = -1) -> None:
        self.launched: list[Pending] = []
        self.both = threading.Barrier(2)
        self._fails_at = fails_at

    def launch(self, step: StepInput) -> Pending:
        if step.step_id == self._fails_at:
            self.both.wait(WAIT_S)
            raise RuntimeError("not launched")
        self.launched.append(Pending(step.step_id))
        if step.step_id == 1:
            self.both.wait(WAIT_S)
        return self.launched[-1]


@dataclass(slots=True)
class Served:
    """A loop in a thread, and the Router's end of its link."""

    server: ControlServer
    pool: ThreadPoolExecutor

    def start(self, launcher: Launcher) -> Future[None]:
        loop = ShardLoop(ControlClient(self.server.address, 0))
        return self.pool.submit(loop.run_ahead, launcher)

    async def next(self, kind: type[HelloMessage] | type[OutputMessage]) -> object:
        while not isinstance(message := await next_message(self.server), kind):
            pass
        return message

    def send(self, step_id: int) -> None:
        self.server.send_step(StepInput(step_id, [], [0], [1], [0], [[0]], [5], [True]))


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    server = ControlServer(LOOPBACK, 1, 1)
    with ThreadPoolExecutor(1) as pool:
        yield Served(server, pool)
        server.send_stop()  # to a loop that a failed test has left
    server.close()


async def test_a_step_is_launched_before_the_tokens_of_the_one_before_are_there(served: Served) -> None:
    launcher = Launcher()
    running = served.start(launcher)
    await served.next(HelloMessage)
    served.send(0)
    served.send(1)
    await asyncio.to_thread(launcher.both.wait, WAIT_S)
    for pending in reversed(launcher.launched):
        pending.is_there.set()
    for step_id in (0, 1):
        message = await served.next(OutputMessage)
        assert isinstance(message, OutputMessage)
        assert message.output == StepOutput(step_id, [step_id])
    served.server.send_stop()
    await asyncio.wrap_future(running)


async def test_a_device_that_is_lost_ends_the_loop_though_no_step_comes(served: Served) -> None:
    launcher = Launcher()
    running = served.start(launcher)
    await served.next(HelloMessage)
    served.send(0)
    served.send(1)
    await asyncio.to_thread(launcher.both.wait, WAIT_S)
    launcher.launched[0].error = RuntimeError("the device is lost")
    launcher.launched[0].is_there.set()
    with pytest.raises(RuntimeError, match="the device is lost"):
        await asyncio.wait_for(asyncio.wrap_future(running), WAIT_S)


async def test_a_step_that_cannot_be_launched_ends_the_loop_behind_those_that_were(served: Served) -> None:
    launcher = Launcher(fails_at=1)
    running = served.start(launcher)
    await served.next(HelloMessage)
    served.send(0)
    served.send(1)
    await asyncio.to_thread(launcher.both.wait, WAIT_S)
    launcher.launched[0].is_there.set()
    with pytest.raises(RuntimeError, match="not launched"):
        await asyncio.wait_for(asyncio.wrap_future(running), WAIT_S)
