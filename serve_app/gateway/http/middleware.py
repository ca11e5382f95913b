"""What stands around every HTTP request: the limit of its headers, whether any is taken, its API key.

An answer's `x-request-id` is written by Serve's proxy.
"""

import secrets
from collections.abc import Awaitable
from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import HeadersTooLargeError, InternalError, RayshardError
from serve_app.gateway.api_keys import ApiKeys
from serve_app.gateway.caller import ADDRESS, SESSION
from serve_app.gateway.failures import log_fault
from serve_app.gateway.http.aliases import is_protocol_path
from serve_app.gateway.http.errors import on_protocol_error, on_rayshard_error, on_unexpected_error
from serve_app.gateway.intake import Intake
from serve_app.gateway.time_limits import TIMEOUT_KEY, begin_request

MAX_HEADER_BYTES = 65_536  # as many as common proxies take, or more
OPEN_PATHS = frozenset(
    {
        "/health",
        "/healthz",
        "/ping",
        "/version",
        "/api/version",
        "/v2/health/live",
        "/v2/health/ready",
        "/openapi.json",
        "/docs",
    }
)  # for probes, and what names no model


def new_id(prefix: str = "") -> str:
    """A fresh id."""
    return prefix + secrets.token_hex(16)


def authorizations_of(headers: Headers) -> list[str]:
    """The `authorization` headers of a request, and what its `x-api-key` headers, Anthropic's, say beside them."""
    given = headers.getlist("authorization")
    others = [f"Bearer {key}" for key in headers.getlist("x-api-key") if key]
    return [*given, *(other for other in others if other not in given)]


class FaultMiddleware:
    """Answers and logs what is not an error of ours; the server above would log it with what it says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Around all other middleware."""
        has_begun = False

        def send_and_see(message: Message) -> Awaitable[None]:  # not a coroutine of its own: events pass here
            nonlocal has_begun
            has_begun = True
            return send(message)

        try:
            await self._app(scope, receive, send_and_see)
        except Exception as error:
            if scope["type"] != "http":
                raise
            log_fault(error)
            if has_begun:  # the connection is to break off: the answer is not whole
                raise InternalError("an answer could not be sent to its end") from None
            response = await on_unexpected_error(Request(scope), error)
            await response(scope, receive, send)


class HeaderLimitMiddleware:
    """Refuses requests whose headers are too large, which Serve's HTTP proxy lets through; notes whose the rest are."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the request, or answers 431."""
        client = scope.get("client")
        ADDRESS.set(client[0] if client else "")  # of this request's task alone
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        SESSION.set(headers.get("x-session-id", ""))
        begin_request(headers.get(TIMEOUT_KEY))
        if scope["type"] == "http" and _header_bytes(scope) > MAX_HEADER_BYTES:
            error = HeadersTooLargeError(f"the headers are larger than {MAX_HEADER_BYTES} bytes; send less")
            await refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)


class IntakeMiddleware:
    """Counts requests while they run, and refuses them while the server drains; those for free paths go on."""

    def __init__(self, app: ASGIApp, intake: Intake, free_paths: frozenset[str] = OPEN_PATHS) -> None:
        self._app = app
        self._intake = intake
        self._free_paths = free_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the request, or answers 503."""
        if scope["type"] != "http" or scope["path"] in self._free_paths:
            await self._app(scope, receive, send)
            return
        place = ExitStack()
        try:
            place.enter_context(self._intake.taken())
        except RayshardError as error:
            await refuse(error, scope, receive, send)
            return
        with place:
            await self._app(scope, receive, send)


class KeyMiddleware:
    """Every path but the open ones needs a key. Judged by the path that the server has parsed, never by a URL."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, open_paths: frozenset[str] = OPEN_PATHS) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the request while its key is in use."""
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        use = ExitStack()
        try:
            use.enter_context(self._keys.used(authorizations_of(Headers(scope=scope))))
        except RayshardError as error:
            await refuse(error, scope, receive, send)
            return
        with use:
            await self._app(scope, receive, send)


async def refuse(error: RayshardError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with an error before it reaches its route, in the shape of its protocol."""
    show = on_protocol_error if is_protocol_path(scope["path"]) else on_rayshard_error
    response = await show(Request(scope), error)
    await response(scope, receive, send)


def _header_bytes(scope: Scope) -> int:
    return sum(len(name) + len(value) for name, value in scope["headers"])
