"""Runs a request of this process's own through a route, as if a client had sent it."""

import asyncio
import math
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Message, Scope

from serve_app.errors import RayshardError
from serve_app.gateway.batches.callers import BatchCaller
from serve_app.gateway.batches.line_calls import LineAnswer
from serve_app.gateway.caller import ADDRESS, CALLER, SESSION
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.failures import log_fault
from serve_app.gateway.http.errors import error_body, on_http_exception, on_rayshard_error, on_unexpected_error
from serve_app.gateway.http.middleware import new_id
from serve_app.gateway.request_notes import counted
from serve_app.gateway.request_span import RequestSpan
from serve_app.gateway.time_limits import TIMEOUT_KEY, begin_request

_TRY_AGAIN = frozenset({429, 503})


class InnerCalls:
    """The endpoints of some routes. Requests are counted under routes of their own: `batch PATH`."""

    def __init__(self, plane: DataPlane, routes: Sequence[Route]) -> None:
        self._plane = plane
        self._app = Starlette(
            routes=routes,
            exception_handlers={
                RayshardError: on_rayshard_error,
                HTTPException: on_http_exception,
                Exception: on_unexpected_error,
            },
        )

    async def __call__(self, path: str, body: bytes, caller: BatchCaller, limit_s: float) -> LineAnswer:
        """The answer of the route of this path, in time."""
        exchange, request_id = _Exchange(body), new_id("req_")
        await asyncio.create_task(self._run(_scope_of(path, body, limit_s), exchange, caller))  # in its own context
        headers = Headers(raw=exchange.headers)
        is_told_not_to = headers.get("x-should-retry") == "false"
        retry_after_s = None
        if exchange.status in _TRY_AGAIN and not is_told_not_to:
            retry_after_s = float(headers.get("retry-after", "1"))
        return LineAnswer(exchange.status, bytes(exchange.content), request_id, retry_after_s)

    async def _run(self, scope: Scope, exchange: "_Exchange", caller: BatchCaller) -> None:
        CALLER.set(caller)
        ADDRESS.set("")
        SESSION.set("")
        begin_request(Headers(scope=scope).get(TIMEOUT_KEY))
        route, plane = f"batch {scope['path']}", self._plane
        try:
            with plane.intake.taken():
                span = None if plane.tracing is None else RequestSpan.of_http(plane.tracing, "POST", [])
                with counted(plane.metrics, route, lambda: exchange.status, span, _TRY_AGAIN):
                    await self._app(scope, exchange.receive, exchange.send)
        except RayshardError as error:  # the server drains
            exchange.end_with(error)
        except Exception as error:  # a fault of ours, which the answer says already
            log_fault(error)


class _Exchange:
    """One request and its answer."""

    def __init__(self, body: bytes) -> None:
        self.status = 500
        self.headers: list[tuple[bytes, bytes]] = []
        self.content = bytearray()
        self._body: bytes | None = body

    async def receive(self) -> Message:
        """The body, and nothing after it: this client does not leave."""
        if self._body is None:
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            self.content += message.get("body", b"")

    def end_with(self, error: RayshardError) -> None:
        self.status, self.content = error.http_status, bytearray(error_body(error))
        if error.is_retryable:
            self.headers = [(b"retry-after", str(math.ceil(error.retry_after_s or 1.0)).encode())]


def _scope_of(path: str, body: bytes, limit_s: float) -> Scope:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (TIMEOUT_KEY.encode(), str(max(1, min(int(limit_s * 1000), 999_999_999))).encode()),
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
    }
