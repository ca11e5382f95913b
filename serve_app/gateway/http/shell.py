"""What every HTTP endpoint does around its work: read a bounded body, keep to time, notice a client that left."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import RequestAbortedError, RequestError, RequestTooLargeError, SlowRequestError
from serve_app.gateway.bodies.json_body import parse_json_object
from serve_app.gateway.http.content_encoding import ContentDecoder
from serve_app.gateway.http.sse import wait_for_disconnect
from serve_app.gateway.time_limits import time_limit_of, within

ResultT = TypeVar("ResultT")


class RequestShell:
    """Limits of size and time, by the Gateway's settings."""

    def __init__(self, config: GatewayConfig) -> None:
        self.max_bytes = config.max_request_bytes
        self._limit_s = config.request_timeout_s
        self._body_limit_s = config.body_timeout_s

    async def read(self, request: Request) -> bytes:
        """The body as it was before it was compressed, refused as soon as it is known to be too large, or late."""
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self.max_bytes:
            raise self._too_large()
        decoder = ContentDecoder(request.headers.get("content-encoding", ""))
        content = bytearray()
        try:
            async with asyncio.timeout(self._body_limit_s):
                async for piece in request.stream():
                    content += decoder.feed(piece, self.max_bytes - len(content))
                    if len(content) > self.max_bytes:
                        raise self._too_large()
        except TimeoutError as error:
            message = f"the body did not arrive within body_timeout_s={self._body_limit_s:g}; send it in that time"
            raise SlowRequestError(message, field="body") from error
        except ClientDisconnect as error:
            raise RequestAbortedError("the client left while sending") from error
        decoder.finish()
        return bytes(content)

    async def read_object(self, request: Request) -> dict[str, Any]:
        """The body as a JSON object."""
        return parse_json_object(await self.read(request))

    def time_limit(self, request: Request) -> float | None:
        """Seconds that a request may take; None: any. Raises RequestError."""
        return time_limit_of(request.headers, self._limit_s)

    async def run(self, request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """What the work comes to, in time and while the client is there."""
        try:
            limit_s = self.time_limit(request)
        except RequestError:
            work.close()
            raise
        return await while_connected(request, within(limit_s, work))

    def _too_large(self) -> RequestTooLargeError:
        return RequestTooLargeError(f"body is larger than max_request_bytes={self.max_bytes}; send less", field="body")


async def while_connected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Do the work, or cancel it when the client leaves."""
    job = asyncio.create_task(work)
    watcher = asyncio.create_task(wait_for_disconnect(request.receive))
    try:
        await asyncio.wait({job, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise RequestAbortedError("the client left")
        return await job
    finally:
        job.cancel()
        watcher.cancel()
        await asyncio.gather(job, watcher, return_exceptions=True)


def json_answer(content: msgspec.Struct, *, status: int = 200) -> Response:
    """A JSON response."""
    return json_bytes(msgspec.json.encode(content), status=status)


def json_bytes(content: bytes, *, status: int = 200) -> Response:
    """A JSON response of encoded content."""
    return Response(content, status_code=status, media_type="application/json")
