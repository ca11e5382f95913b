"""What is left of a request's time."""

import asyncio
import time

import pytest

from serve_app.backend.failover import _next_call
from serve_app.backend.replica_calls import ReplicaLostError
from serve_app.backend.time_left import TimeLeft
from serve_app.backend.token_stream import TokenStream
from serve_app.config.failover import FailoverConfig
from serve_app.errors import TimeoutExceededError
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.links import LinkAddress
from serve_app.wire.messages import GenerateMessage


def test_it_grows_less_and_not_below_nothing() -> None:
    left, short = TimeLeft(100.0), TimeLeft(0.001)
    time.sleep(0.02)
    assert left.seconds is not None
    assert 50 < left.seconds <= 99.98
    assert short.seconds == 0.0
    assert TimeLeft().seconds is None


async def test_work_is_cancelled_when_it_has_passed() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    with pytest.raises(TimeoutExceededError, match="time passed"):
        await TimeLeft(0.02).bound(work())
    assert cancelled.is_set()


async def test_what_the_work_raises_is_its_own() -> None:
    async def fail() -> None:
        raise TimeoutError("of something else")

    with pytest.raises(TimeoutError, match="something else"):
        await TimeLeft(60.0).bound(fail())

    async def answer() -> int:
        return 3

    assert await TimeLeft().bound(answer()) == 3


@pytest.mark.parametrize("limit_s", [60.0, None])
def test_a_resumed_stream_has_what_remains_of_its_time(limit_s: float | None) -> None:
    request = GenerateRequest("r", [1, 2], SamplingParams(max_tokens=4, seed=0), time_left_s=limit_s, priority=5)
    left, stream = TimeLeft(limit_s), TokenStream(1, lambda _chunk: True)
    time.sleep(0.02)
    make = _next_call(request, left, stream, ReplicaLostError(), FailoverConfig(max_pause_s=2.0))
    message = make(1, LinkAddress("127.0.0.1", "tcp://127.0.0.1:1", None, "key"))
    assert isinstance(message, GenerateMessage)
    resumed = message.request
    assert resumed.priority == 5
    if limit_s is None:
        assert resumed.time_left_s is None
    else:
        assert resumed.time_left_s is not None
        assert 30 < resumed.time_left_s <= 59.98
