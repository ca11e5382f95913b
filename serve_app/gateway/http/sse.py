"""Streams, of server-sent events first of all, to a client that may be slow, or leave."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.errors import RayshardError, RequestAbortedError
from serve_app.gateway.failures import as_rayshard_error
from serve_app.gateway.http.errors import error_body
from serve_app.gateway.request_notes import note_error

logger = logging.getLogger(__name__)

_KEEP_ALIVE_S = 10.0
_KEEP_ALIVE = b": the answer goes on\n\n"  # a comment: readers of events pass over it
_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies must not collect events
]


def _openai_error(error: RayshardError) -> bytes:
    return b"data: " + error_body(error) + b"\n\n"


@dataclass(frozen=True, slots=True)
class StreamStyle:
    """How a protocol writes what is no part of an answer; by itself OpenAI's."""

    show_error: Callable[[RayshardError], bytes] = _openai_error  # the event of an error after the first event
    keep_alive: bytes = _KEEP_ALIVE
    media_type: str = "text/event-stream; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


_OPENAI_STYLE = StreamStyle()


class Outbox:
    """Events waiting for one client. Those that wait are sent as one piece."""

    def __init__(self, max_waiting_tokens: int) -> None:
        self.num_sent = 0  # times that something was taken to be sent
        self.is_sending = False  # inside a send: while this lasts, the client is not reading
        self.is_overflown = False
        self.has_events = False
        self._max_waiting_tokens = max_waiting_tokens
        self._waiting: list[bytes] = []
        self._num_waiting_tokens = 0
        self.is_closed = False
        self._taker: asyncio.Future[None] | None = None  # of a `take` that waits; an Event costs more for each token

    def put(self, event: bytes, num_tokens: int) -> None:
        """An empty event is none. Raises RequestAbortedError when the client has left too many tokens unread."""
        self._num_waiting_tokens += num_tokens
        if self.is_sending and self._num_waiting_tokens > self._max_waiting_tokens:
            self.is_overflown = True
            raise RequestAbortedError(f"the client left more than {self._max_waiting_tokens} tokens unread")
        if not event:
            return
        self._waiting.append(event)
        self.has_events = True
        self._wake()

    def close(self) -> None:
        """Nothing more will come."""
        self.is_closed = True
        self._wake()

    async def take(self) -> bytes:
        """All that waits; empty at the end. For one task."""
        while not self._waiting and not self.is_closed:
            self._taker = asyncio.get_running_loop().create_future()
            await self._taker
        waiting, self._waiting, self._num_waiting_tokens = self._waiting, [], 0
        self.num_sent += 1
        return b"".join(waiting)

    def _wake(self) -> None:
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)


class EventStreamResponse(Response):
    """Sends what `produce` puts into its outbox. An error before the first event is a plain HTTP error.

    While a stream that has begun pauses, comments keep what lies between here and the client from giving it up.
    """

    def __init__(
        self,
        produce: Callable[[Outbox], Awaitable[None]],
        *,
        max_waiting_tokens: int,
        style: StreamStyle = _OPENAI_STYLE,
    ) -> None:
        super().__init__()
        self._produce = produce
        self._style = style
        self._outbox = Outbox(max_waiting_tokens)

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Ends when all is sent, when the client has left, or when it does not read."""
        producer = asyncio.create_task(self._run_producer())
        writer = asyncio.create_task(self._write(send))
        watcher = asyncio.create_task(wait_for_disconnect(receive))
        keeper = asyncio.create_task(self._keep_alive())
        try:
            waiting = {producer, writer, watcher}
            while not (writer.done() or watcher.done() or self._outbox.is_overflown):
                _done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks = (producer, writer, watcher, keeper)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(outcomes[1], Exception):
            logger.info("stream not sent to its end reason=%r", outcomes[1])
        if isinstance(outcomes[0], asyncio.CancelledError):
            note_error(RequestAbortedError("the client left"))
        if isinstance(outcomes[0], Exception):  # raised before the first event
            raise outcomes[0]

    async def _run_producer(self) -> None:
        outbox = self._outbox
        try:
            await self._produce(outbox)
        except Exception as error:  # here it meets the client
            if not outbox.has_events:
                raise
            told = as_rayshard_error(error)
            note_error(told)
            if not outbox.is_overflown:
                outbox.put(self._style.show_error(told), 0)
        finally:
            outbox.close()

    async def _keep_alive(self) -> None:
        outbox = self._outbox
        while True:
            num_sent = outbox.num_sent
            await asyncio.sleep(_KEEP_ALIVE_S)
            if outbox.has_events and not (outbox.is_closed or outbox.is_sending) and outbox.num_sent == num_sent:
                outbox.put(self._style.keep_alive, 0)

    def _start_headers(self) -> list[tuple[bytes, bytes]]:
        added = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._style.headers.items()]
        return [(b"content-type", self._style.media_type.encode("latin-1")), *_HEADERS, *added]

    async def _write(self, send: Send) -> None:
        outbox = self._outbox
        is_started = False
        while content := await outbox.take():
            outbox.is_sending = True
            if not is_started:
                await send({"type": "http.response.start", "status": 200, "headers": self._start_headers()})
                is_started = True
            await send({"type": "http.response.body", "body": content, "more_body": True})
            outbox.is_sending = False
        if is_started:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
