"""Grammars that are compiled beside a shard's steps, over the real control link."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager

from serve_app.engine.grammar_desk import GrammarDesk
from serve_app.engine.shard_loop import ShardLoop
from serve_app.types.steps import GrammarChange, StepInput, StepOutput
from serve_app.wire.control_link import ControlClient, ControlServer
from serve_app.wire.links import LOOPBACK
from serve_app.wire.messages import PROTOCOL_VERSION, GrammarReadyMessage, HelloMessage, OutputMessage
from tests.fakes_engine import SlowCompiler
from tests.fakes_links import next_message


class Echo:
    """Answers every step."""

    def run(self, step: StepInput) -> StepOutput:
        """At once."""
        return StepOutput(step.step_id, [])


@asynccontextmanager
async def running(compiler: SlowCompiler | None) -> AsyncIterator[ControlServer]:
    server = ControlServer(LOOPBACK, 1, 1)
    loop = ShardLoop(ControlClient(server.address, 0), beat_s=60)
    task = asyncio.create_task(asyncio.to_thread(loop.run, StepInput, Echo(), None, compiler))
    try:
        async with asyncio.timeout(10):
            assert isinstance(await next_message(server), HelloMessage)
            yield server
            server.send_stop()
            await task
    finally:
        server.close()


def empty_step(step_id: int) -> StepInput:
    return StepInput(step_id, [], [], [], [], [], [], [])


async def run_step(server: ControlServer, step_id: int) -> None:
    server.send_step(empty_step(step_id))
    message = await next_message(server)
    assert isinstance(message, OutputMessage)
    assert message.output.step_id == step_id


async def test_steps_go_on_while_a_grammar_is_compiled_and_the_router_is_told_when_it_is() -> None:
    compiler = SlowCompiler()
    async with running(compiler) as server:
        server.send_grammar(GrammarChange(7, "slow"))
        for step_id in range(5):
            await run_step(server, step_id)
        assert not compiler.compiled["slow"].done()
        compiler.finish("slow")
        assert await next_message(server) == GrammarReadyMessage(PROTOCOL_VERSION, 1, 7)
        server.send_grammar(GrammarChange(7, None))
        await run_step(server, 5)
        assert compiler.compiled == {}


async def test_one_that_cannot_be_compiled_is_told_of_too() -> None:
    compiler = SlowCompiler()
    async with running(compiler) as server:
        server.send_grammar(GrammarChange(0, "broken"))
        await run_step(server, 0)
        compiler.compiled["broken"].set_exception(ValueError("no"))
        assert await next_message(server) == GrammarReadyMessage(PROTOCOL_VERSION, 1, 0)


async def test_a_run_ends_though_a_compilation_does_not() -> None:
    async with running(SlowCompiler()) as server:
        server.send_grammar(GrammarChange(0, "endless"))
        await run_step(server, 0)


async def test_a_shard_that_draws_nothing_takes_no_notice() -> None:
    async with running(None) as server:
        server.send_grammar(GrammarChange(0, "g"))
        await run_step(server, 0)


def test_grammars_are_told_of_in_their_order() -> None:
    told: list[int] = []
    both = threading.Event()

    def tell(number: int) -> None:
        told.append(number)
        if len(told) == 2:
            both.set()

    compiler = SlowCompiler()
    desk = GrammarDesk(compiler, tell)
    desk.take(GrammarChange(0, "a"))
    desk.take(GrammarChange(1, "b"))
    compiler.finish("b")
    compiler.finish("a")
    assert both.wait(10)
    desk.close()
    assert told == [0, 1]


def test_what_is_compiled_after_the_end_is_told_to_nobody() -> None:
    told: list[int] = []
    compiler = SlowCompiler()
    desk = GrammarDesk(compiler, told.append)
    desk.take(GrammarChange(0, "a"))
    compiled: Future[object] = compiler.compiled["a"]
    desk.close()
    compiled.set_result(None)
    assert told == []
