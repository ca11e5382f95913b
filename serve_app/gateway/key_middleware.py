"""Lets HTTP requests in that have an API key. Judged by the path that the server has parsed, never by a URL."""

from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import RayshardError
from serve_app.gateway.api_keys import ApiKeys
from serve_app.gateway.http_errors import on_protocol_error, on_rayshard_error

OPEN_PATHS = frozenset(
    {"/health", "/ping", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs"}
)  # for probes, and what names no model


class KeyMiddleware:
    """Every path but those for probes needs a key."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the request while its key is in use."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        use = ExitStack()
        try:
            use.enter_context(self._keys.used(Headers(scope=scope).get("authorization")))
        except RayshardError as error:
            show = on_protocol_error if scope["path"].startswith("/v2") else on_rayshard_error
            response = await show(Request(scope), error)
            await response(scope, receive, send)
            return
        with use:
            await self._app(scope, receive, send)
