"""A request's stream of tokens: in order, complete, or an error."""

import asyncio

import pytest

from serve_app.backend.token_streams import TokenStream
from serve_app.errors import InternalError, ShardLostError
from serve_app.types.generation import Completion, FinishReason, OutputChunk

LOST = ShardLostError("shard 1 is gone")


class Call:
    """The unary call behind a stream: counts how often it was cancelled."""

    def __init__(self, num_choices: int = 1, last_chunks_s: float = 5.0) -> None:
        self.num_cancels = 0
        self.stream = TokenStream(num_choices, self.cancel, last_chunks_s=last_chunks_s)

    def cancel(self) -> None:
        self.num_cancels += 1


def chunk(
    index: int, finish_reason: FinishReason | None = None, *, choice: int = 0, num_tokens: int = 1
) -> OutputChunk:
    return OutputChunk(choice, index, list(range(num_tokens)), finish_reason=finish_reason)


async def rest_of(stream: TokenStream) -> list[OutputChunk]:
    async with asyncio.timeout(5):
        return [one async for chunks in stream for one in chunks]


async def test_a_stream_ends_after_the_last_choice_has_ended() -> None:
    stream = Call(num_choices=2).stream
    chunks = [chunk(0), chunk(0, choice=1), chunk(1, "stop", choice=1), chunk(1), chunk(2, "length")]
    for one in chunks:
        stream.feed(one)
    assert await rest_of(stream) == chunks


async def test_a_reader_is_given_all_that_has_come_since_it_last_read() -> None:
    stream = Call().stream
    stream.feed(chunk(0, num_tokens=3))
    stream.feed(chunk(3))
    assert stream.num_pending_tokens == 4
    assert await anext(stream) == [chunk(0, num_tokens=3), chunk(3)]
    assert stream.num_pending_tokens == 0


async def test_a_reader_that_waits_is_woken_by_a_chunk() -> None:
    stream = Call().stream
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.01)
    assert not reading.done()
    stream.feed(chunk(0))
    async with asyncio.timeout(5):
        assert await reading == [chunk(0)]


@pytest.mark.parametrize("index", [2, 0], ids=["a gap", "again"])
async def test_tokens_that_do_not_follow_end_the_stream_and_cancel_the_call(index: int) -> None:
    call = Call()
    call.stream.feed(chunk(0))
    call.stream.feed(chunk(index))
    call.stream.feed(chunk(index + 1, "stop"))  # too late
    assert await anext(call.stream) == [chunk(0)]
    with pytest.raises(InternalError, match=rf"tokens were lost before token {index} of choice 0"):
        await anext(call.stream)
    await call.stream.aclose()
    assert call.num_cancels == 1


async def test_a_gap_is_seen_after_a_chunk_of_several_tokens() -> None:
    call = Call(num_choices=2)
    call.stream.feed(chunk(0, num_tokens=3))
    call.stream.feed(chunk(3))
    call.stream.feed(chunk(0, choice=1))
    assert call.num_cancels == 0
    call.stream.feed(chunk(3, choice=1))
    assert call.num_cancels == 1


async def test_an_error_comes_after_what_has_arrived() -> None:
    call = Call()
    call.stream.feed(chunk(0))
    call.stream.fail(LOST)
    assert await anext(call.stream) == [chunk(0)]
    for _ in range(2):
        with pytest.raises(ShardLostError, match="shard 1 is gone"):
            await anext(call.stream)


async def test_an_error_wakes_a_reader_that_waits() -> None:
    stream = Call().stream
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.01)
    stream.fail(LOST)
    with pytest.raises(ShardLostError):
        async with asyncio.timeout(5):
            await reading


async def test_the_first_of_two_errors_counts() -> None:
    stream = Call().stream
    stream.fail(LOST)
    stream.fail(InternalError("later"))
    with pytest.raises(ShardLostError):
        await anext(stream)


async def test_an_error_after_the_last_token_does_not_matter() -> None:
    stream = Call().stream
    stream.feed(chunk(0, "stop"))
    stream.fail(LOST)
    assert await rest_of(stream) == [chunk(0, "stop")]


async def test_a_call_that_returns_before_its_last_chunks_is_no_error_if_they_come() -> None:
    stream = Call(last_chunks_s=0.2).stream
    stream.feed(chunk(0))
    stream.complete(Completion(3, [2], ["stop"]))
    stream.feed(chunk(1, "stop"))
    assert await rest_of(stream) == [chunk(0), chunk(1, "stop")]
    await asyncio.sleep(0.3)
    assert await rest_of(stream) == []


async def test_a_call_that_returns_and_whose_last_chunks_never_come_is_an_error() -> None:
    call = Call(last_chunks_s=0.1)
    call.stream.feed(chunk(0))
    call.stream.complete(Completion(3, [2], ["stop"]))
    assert await anext(call.stream) == [chunk(0)]
    with pytest.raises(InternalError, match="the last tokens were lost: 2 were drawn"):
        async with asyncio.timeout(5):
            await anext(call.stream)


async def test_last_chunks_have_seconds_to_come_unless_said() -> None:
    stream = TokenStream(1, lambda: None)
    stream.complete(Completion(3, [1], ["stop"]))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await anext(stream)
    await stream.aclose()


async def test_leaving_early_cancels_the_call_once() -> None:
    call = Call()
    call.stream.feed(chunk(0))
    await call.stream.aclose()
    await call.stream.aclose()
    assert call.num_cancels == 1


async def test_what_comes_after_leaving_is_dropped() -> None:
    call = Call()
    await call.stream.aclose()
    call.stream.feed(chunk(0))
    call.stream.feed(chunk(7))
    assert (call.stream.num_pending_tokens, call.num_cancels) == (0, 1)


async def test_leaving_while_one_choice_still_runs_cancels_the_call() -> None:
    call = Call(num_choices=2)
    call.stream.feed(chunk(0, "stop"))
    await call.stream.aclose()
    assert call.num_cancels == 1


@pytest.mark.parametrize("is_read", [True, False])
async def test_leaving_after_the_end_cancels_nothing(is_read: bool) -> None:
    call = Call()
    call.stream.feed(chunk(0, "stop"))
    if is_read:
        await rest_of(call.stream)
    await call.stream.aclose()
    assert call.num_cancels == 0


async def test_leaving_after_an_error_cancels_nothing() -> None:
    call = Call()
    call.stream.fail(LOST)
    await call.stream.aclose()
    assert call.num_cancels == 0
