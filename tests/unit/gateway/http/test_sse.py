"""Server-sent events over a client that a test plays."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve_app.errors import UnavailableError
from serve_app.gateway.http import sse
from serve_app.gateway.http.sse import EventStreamResponse, Outbox, StreamStyle


async def sent_by(produce: Callable[[Outbox], Awaitable[None]], style: StreamStyle | None = None) -> list[bytes]:
    """What a response sends to a client that stays."""
    bodies: list[bytes] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            bodies.append(message["body"])

    async with asyncio.timeout(10):
        await EventStreamResponse(produce, max_waiting_tokens=100, style=style or StreamStyle())({}, receive, send)
    return bodies


async def test_a_stream_that_pauses_is_kept_alive_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_KEEP_ALIVE_S", 0.01)

    async def produce(outbox: Outbox) -> None:
        outbox.put(b"data: 1\n\n", 1)
        await asyncio.sleep(0.5)
        outbox.put(b"data: 2\n\n", 1)

    first, *comments, last, rest = b"".join(await sent_by(produce)).split(b"\n\n")  # some may leave together
    assert (first, last, rest) == (b"data: 1", b"data: 2", b"")
    assert len(comments) >= 2
    assert all(comment.startswith(b":") for comment in comments)


async def test_a_protocol_may_have_words_of_its_own_for_pauses_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_KEEP_ALIVE_S", 0.01)
    style = StreamStyle(lambda error: error.message.encode() + b"\n\n", b"event: ping\n\n")

    async def produce(outbox: Outbox) -> None:
        outbox.put(b"data: 1\n\n", 1)
        await asyncio.sleep(0.5)
        raise UnavailableError("no copy is left")

    first, *pings, error, rest = b"".join(await sent_by(produce, style)).split(b"\n\n")
    assert (first, error, rest) == (b"data: 1", b"no copy is left", b"")
    assert len(pings) >= 2
    assert set(pings) == {b"event: ping"}


async def test_nothing_is_sent_before_the_first_event_as_it_may_be_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_KEEP_ALIVE_S", 0.01)

    async def produce(_outbox: Outbox) -> None:
        await asyncio.sleep(0.05)
        raise UnavailableError("no copy is ready")

    with pytest.raises(UnavailableError):
        await sent_by(produce)


async def test_a_stream_that_flows_gets_no_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_KEEP_ALIVE_S", 1.0)

    async def produce(outbox: Outbox) -> None:
        for _ in range(24):  # longer than a pause may be
            outbox.put(b"data: 1\n\n", 1)
            await asyncio.sleep(0.05)

    assert set(await sent_by(produce)) == {b"data: 1\n\n", b""}


async def test_an_empty_event_ends_no_stream() -> None:
    async def produce(outbox: Outbox) -> None:
        for event in (b"", b"data: 1\n\n", b"", b"data: 2\n\n"):
            outbox.put(event, 1)
            await asyncio.sleep(0.01)

    assert b"".join(await sent_by(produce)) == b"data: 1\n\ndata: 2\n\n"
