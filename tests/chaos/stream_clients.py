"""Clients that stream chats, each one after the other, as plain readers of server-sent events."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import httpx

from tests.chaos.event_stream import Answer, EventStream, kind_of

NUM_CLIENTS = 8

_KINDS = {httpx.ConnectError: "refused", httpx.ReadError: "cut", httpx.RemoteProtocolError: "cut"}


@dataclass(frozen=True, slots=True)
class Manners:
    """How clients behave."""

    stagger_s: float = 0.1  # from client to client: else all streams would be equally far at the fault
    after_failure_s: float = 1.0  # who was turned away does not come back at once
    rest: float = 0.0  # after an answer, as a share of the time that it took: 0.25 loads a server to 80 %
    max_silence_s: float = 150.0  # without an event, which a comment is not


class StreamClients:
    """The clients of one run."""

    def __init__(
        self, url: str, give_up_s: float, manners: Manners | None = None, num_clients: int = NUM_CLIENTS
    ) -> None:
        """give_up_s: by time.monotonic; what has not ended by then has failed."""
        self._url = f"{url}/v1/chat/completions"
        self._give_up_s = give_up_s
        self._manners = manners or Manners()
        self._num_clients = num_clients
        self.num_open = 0

    async def run(self, chats: Sequence[dict[str, Any]], min_s: float = 0.0) -> list[Answer]:
        """Send all chats, and go round again while `min_s` have not passed; answers in the order of sending."""
        answers: dict[int, Answer] = {}
        waiting = _numbers(len(chats), time.monotonic() + min_s)
        await asyncio.gather(*(self._work_off(client, chats, waiting, answers) for client in range(self._num_clients)))
        return [answers[number] for number in sorted(answers)]

    async def _work_off(
        self, client: int, chats: Sequence[dict[str, Any]], waiting: Iterator[int], answers: dict[int, Answer]
    ) -> None:
        await asyncio.sleep(client * self._manners.stagger_s)
        async with httpx.AsyncClient(timeout=None, trust_env=False, verify=False) as connections:
            for number in waiting:
                if time.monotonic() >= self._give_up_s:
                    answers[number] = Answer({}, None, "never sent", 0.0)
                    continue
                sent_s = time.monotonic()
                answers[number] = await self._ask(connections, chats[number % len(chats)])
                rest_s = self._manners.rest * (time.monotonic() - sent_s)
                await asyncio.sleep(rest_s if answers[number].failure is None else self._manners.after_failure_s)

    async def _ask(self, connections: httpx.AsyncClient, chat: dict[str, Any]) -> Answer:
        stream = EventStream(time.monotonic())
        self.num_open += 1
        try:
            failure = await self._read(connections, chat, stream)
        except TimeoutError:
            failure = "silent" if time.monotonic() < self._give_up_s else "hung"
        except httpx.TransportError as error:
            failure = _KINDS.get(type(error), type(error).__name__)
        finally:
            self.num_open -= 1
        return stream.answer(time.monotonic(), failure)

    async def _read(self, connections: httpx.AsyncClient, chat: dict[str, Any], stream: EventStream) -> str | None:
        """Read a stream to its end; why it was refused, None when it was not."""
        loop = asyncio.get_running_loop()
        async with (
            asyncio.timeout(self._patience_s()) as patience,
            connections.stream("POST", self._url, json=chat) as response,
        ):
            if response.status_code != 200:
                return _refusal(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                if stream.take(line, time.monotonic()):
                    patience.reschedule(loop.time() + self._patience_s())
        return None

    def _patience_s(self) -> float:
        return max(0.0, min(self._manners.max_silence_s, self._give_up_s - time.monotonic()))


def _numbers(num_chats: int, until_s: float) -> Iterator[int]:
    for number in count():
        if number >= num_chats and time.monotonic() >= until_s:
            return
        yield number


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"{status} {kind_of(json.loads(body))}"
    except ValueError:
        return str(status)
