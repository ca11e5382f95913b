"""`GET /metrics`, and what counts the requests of all routes."""

from collections.abc import Awaitable, Callable, Iterable, Set

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import ForbiddenError
from serve_app.gateway.caller import is_admin
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.scrape import all_readings
from serve_app.gateway.request_notes import OK, OTHER_ROUTE, counted
from serve_app.gateway.request_span import RequestSpan
from serve_app.metrics.exposition import expose
from serve_app.metrics.of_gateway import GatewayMetrics
from serve_app.tracing.tracing import Tracing

METRICS_PATH = "/metrics"
_TEMPLATE = "route_template"


def metrics_endpoint(plane: DataPlane) -> Callable[[Request], Awaitable[Response]]:
    """For administrators where keys are used, unless `open_metrics` says otherwise: it names all models."""

    async def metrics(request: Request) -> Response:
        if not is_admin():
            raise ForbiddenError("/metrics is for keys made with --admin; or set open_metrics of the Gateway")
        content, media_type = expose(all_readings(plane), request.headers.get("accept", ""))
        return Response(content, headers={"content-type": media_type})

    return metrics


def counted_routes(routes: Iterable[Route]) -> list[Route]:
    """The same routes, which leave word of which of them was taken."""
    return [_CountedRoute(route.path, route.endpoint, methods=list(route.methods or ())) for route in routes]


class RequestCounter:
    """Counts every request by its route, its model and how it ended, and has it traced. Around all else.

    free_paths: of probes, which are not traced.
    """

    def __init__(
        self, app: ASGIApp, metrics: GatewayMetrics, tracing: Tracing | None = None, free_paths: Set[str] = frozenset()
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._free_paths = free_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = OK

        def send_and_see(message: Message) -> Awaitable[None]:  # not a coroutine of its own: events pass here
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        span = None if self._tracing is None else self._span(self._tracing, scope)
        with counted(self._metrics, lambda: scope.get(_TEMPLATE, OTHER_ROUTE), lambda: status, span):
            await self._app(scope, receive, send_and_see)

    def _span(self, tracing: Tracing, scope: Scope) -> RequestSpan | None:
        if scope["path"] in self._free_paths:
            return None
        return RequestSpan.of_http(tracing, scope["method"], scope["headers"])


class _CountedRoute(Route):
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        return match, {**child_scope, _TEMPLATE: self.path} if match is not Match.NONE else child_scope
