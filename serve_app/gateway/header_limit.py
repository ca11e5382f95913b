"""Requests whose headers are too large, which Serve's HTTP proxy lets through, are refused."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import HeadersTooLargeError
from serve_app.gateway.http_errors import on_rayshard_error

MAX_HEADER_BYTES = 65_536  # as many as common proxies take, or more


class HeaderLimitMiddleware:
    """Looks at the sum of names and values."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the request, or answers 431."""
        if scope["type"] == "http" and _header_bytes(scope) > MAX_HEADER_BYTES:
            error = HeadersTooLargeError(f"the headers are larger than {MAX_HEADER_BYTES} bytes; send less")
            response = await on_rayshard_error(Request(scope), error)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _header_bytes(scope: Scope) -> int:
    return sum(len(name) + len(value) for name, value in scope["headers"])
