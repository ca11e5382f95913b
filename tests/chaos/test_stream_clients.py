"""How clients read what a server sends, and when they count it as failed."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from tests.chaos.event_stream import Answer
from tests.chaos.stream_clients import NUM_CLIENTS, Manners, StreamClients

HASTY = Manners(stagger_s=0.0, after_failure_s=0.0)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"

Serve = Callable[[dict[str, Any], asyncio.StreamWriter], Any]


def event(text: str) -> bytes:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n".encode()


@asynccontextmanager
async def served(serve: Serve) -> AsyncIterator[str]:
    """The URL of a server that answers each request by `serve`."""

    at_hand: set[asyncio.Task[Any]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at_hand.add(asyncio.current_task())  # type: ignore[arg-type]
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # a client may go at any time
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await serve(json.loads(await reader.readexactly(size)), writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.gather(*at_hand)


async def answers_of(serve: Serve, num_chats: int = 1, min_s: float = 0.0) -> list[Answer]:
    async with served(serve) as url:
        clients = StreamClients(url, time.monotonic() + 20.0, HASTY)
        return await clients.run([{"number": number} for number in range(num_chats)], min_s)


async def echo(chat: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + event("chat ") + event(str(chat["number"])) + DONE)


async def refuse(_chat: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    body = b'{"error": {"type": "queue_full"}}'
    writer.write(b"HTTP/1.1 429 No\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def leave(_chat: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + event("a"))


async def break_off(_chat: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 999\r\n\r\n") + event("a"))


async def comment(_chat: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + event("a"))
    while not writer.is_closing():
        writer.write(b": still here\n\n")
        await asyncio.sleep(0.01)


async def test_each_chat_gets_its_own_answer_in_order() -> None:
    answers = await answers_of(echo, num_chats=NUM_CLIENTS + 3)
    assert [answer.texts for answer in answers] == [{0: f"chat {number}"} for number in range(NUM_CLIENTS + 3)]
    assert not any(answer.failure for answer in answers)


async def test_chats_go_round_again_while_the_load_has_to_last() -> None:
    answers = await answers_of(echo, num_chats=2, min_s=1.0)
    assert len(answers) > 4
    assert [answer.texts[0] for answer in answers[:4]] == ["chat 0", "chat 1"] * 2


@pytest.mark.parametrize(
    ("serve", "failure"),
    [(refuse, "429 queue_full"), (leave, "cut"), (break_off, "cut")],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_what_is_no_whole_answer_has_failed(serve: Serve, failure: str) -> None:
    (answer,) = await answers_of(serve)
    assert answer.failure == failure
    assert answer.texts == ({} if serve is refuse else {0: "a"})


async def test_comments_are_silence() -> None:
    async with served(comment) as url:
        clients = StreamClients(url, time.monotonic() + 20.0, Manners(0.0, 0.0, max_silence_s=0.1))
        answers = await asyncio.wait_for(clients.run([{"number": 0}]), 10.0)
    assert [answer.failure for answer in answers] == ["silent"]


async def test_nobody_listens() -> None:
    async with served(echo) as url:
        pass
    (answer,) = await StreamClients(url, time.monotonic() + 20.0, HASTY).run([{"number": 0}])
    assert answer == Answer({}, None, "refused", answer.longest_pause_s)


async def test_when_the_time_is_up_open_streams_hang_and_others_are_never_sent() -> None:
    async with served(comment) as url:
        clients = StreamClients(url, time.monotonic() + 2.0, Manners(0.0, 0.0))
        answers = await clients.run([{"number": number} for number in range(NUM_CLIENTS + 2)])
    assert [answer.failure for answer in answers] == ["hung"] * NUM_CLIENTS + ["never sent"] * 2
    assert clients.num_open == 0
