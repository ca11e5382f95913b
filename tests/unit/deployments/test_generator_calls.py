"""Requests to a copy: each gives what it gives alone, waits its turn, and ends when it is wanted no more."""

import asyncio
from collections.abc import Callable

import pytest

from serve_app.backend.serve_backend import ServeBackend
from serve_app.errors import QueueFullError, RayshardError, TimeoutExceededError
from serve_app.types.generation import OutputChunk
from tests.fakes_serve import FakeControl, running_backend, states, until
from tests.generator_replica import Generator, begun, expected, request_of, slow_down, tokens_of


async def test_requests_give_what_they_give_alone(served: tuple[Generator, ServeBackend]) -> None:
    _generator, backend = served
    requests = [request_of(seed) for seed in range(1, 9)]
    answers = await asyncio.gather(*(tokens_of(backend, request) for request in requests))
    assert answers == [expected(request) for request in requests]


async def test_a_request_that_is_given_up_frees_its_blocks(served: tuple[Generator, ServeBackend]) -> None:
    generator, backend = served
    slow_down(generator)
    running = await begun(backend, request_of(1, 50))
    assert generator.calls.work.load().num_running == 1
    running.cancel()
    await until(lambda: generator.calls.work.load().num_running == 0)
    load = generator.calls.work.load()
    assert load.num_free_blocks == load.num_blocks


async def test_a_reader_that_has_enough_ends_the_request(served: tuple[Generator, ServeBackend]) -> None:
    generator, backend = served
    slow_down(generator)
    taken: list[OutputChunk] = []

    def take(chunk: OutputChunk) -> bool:
        taken.append(chunk)
        return len(taken) < 3

    await backend.generate("demo", request_of(1, 50), take)
    assert len(taken) == 3
    await until(lambda: generator.calls.work.load().num_running == 0)


async def test_what_a_reader_raises_ends_its_request_and_no_other(served: tuple[Generator, ServeBackend]) -> None:
    generator, backend = served
    slow_down(generator, 0.005)
    other = asyncio.create_task(tokens_of(backend, request_of(2, 30)))

    def take(_chunk: OutputChunk) -> bool:
        raise ValueError("a broken reader")

    with pytest.raises(ValueError, match="a broken reader"):
        await backend.generate("demo", request_of(1, 50), take)
    assert await other == expected(request_of(2, 30))


async def test_a_full_queue_is_told_to_the_caller(generators: Callable[..., Generator]) -> None:
    generator = generators(max_queued=1)
    await generator.replica.start()
    control = FakeControl()
    control.add("demo", "Router", generator)
    async with running_backend(control) as backend:
        await until(lambda: states(backend).get("demo") == ["ready"])
        slow_down(generator)
        running = [asyncio.create_task(tokens_of(backend, request_of(seed, 40))) for seed in range(1, 12)]
        ends = await asyncio.gather(*running, return_exceptions=True)
    refused = [end for end in ends if isinstance(end, RayshardError)]
    assert refused
    assert all(isinstance(end, QueueFullError) for end in refused)
    for seed, end in enumerate(ends, 1):
        assert isinstance(end, QueueFullError) or end == expected(request_of(seed, 40))


async def test_a_request_that_waits_too_long_for_its_turn_is_refused(served: tuple[Generator, ServeBackend]) -> None:
    generator, backend = served
    slow_down(generator)
    running = [await begun(backend, request_of(seed, 50)) for seed in range(1, 5)]
    with pytest.raises(QueueFullError, match=r"queue_timeout_s=0\.1"):
        await tokens_of(backend, request_of(9, queue_timeout_s=0.1))
    for task in running:
        task.cancel()


async def test_a_request_whose_time_passes_is_ended_on_the_shards_too(served: tuple[Generator, ServeBackend]) -> None:
    generator, backend = served
    slow_down(generator)
    other = await begun(backend, request_of(2, 30))
    with pytest.raises(TimeoutExceededError, match="time passed"):
        await tokens_of(backend, request_of(1, 50, time_left_s=0.1))
    load = generator.calls.work.load()
    assert (load.num_running, load.num_waiting) == (1, 0)
    assert await other == expected(request_of(2, 30))


async def test_a_request_whose_time_passes_in_the_queue_never_runs(served: tuple[Generator, ServeBackend]) -> None:
    generator, backend = served
    slow_down(generator)
    running = [await begun(backend, request_of(seed, 50)) for seed in range(1, 5)]
    num_tokens = generator.calls.work.load().num_prompt_tokens
    with pytest.raises(TimeoutExceededError):
        await tokens_of(backend, request_of(9, time_left_s=0.05))
    load = generator.calls.work.load()
    assert (load.num_waiting, load.num_prompt_tokens) == (0, num_tokens), "no token of it was computed"
    for task in running:
        task.cancel()


async def test_a_request_that_would_wait_in_vain_is_refused_before_it_waits(
    served: tuple[Generator, ServeBackend],
) -> None:
    generator, backend = served
    slow_down(generator, 0.05)
    running = [asyncio.create_task(tokens_of(backend, request_of(seed, 20))) for seed in range(1, 17)]
    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(QueueFullError, match=r"needs about .* s in the queue, and has 0\.[0-9]* s") as refused:
        await tokens_of(backend, request_of(99, time_left_s=0.5))
    assert refused.value.retry_after_s is not None
    for task in running:
        task.cancel()
