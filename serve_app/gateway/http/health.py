"""`GET /health`: up or down for everybody; names, copies and load for those who may see the models."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from serve_app.backend.protocol import HealthReport
from serve_app.gateway.bodies.others import HealthBody
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.failures import without_places
from serve_app.gateway.http.shell import json_answer


def health_endpoint(plane: DataPlane) -> Callable[[Request], Awaitable[Response]]:
    """200 only when every model can answer."""

    async def health(request: Request) -> Response:
        report = plane.backend.health()
        given = request.headers.getlist("authorization")
        if plane.keys is None:
            body = _body(report, list(report.models))
        elif given:
            holder = plane.keys.holder(given)
            body = _body(report, [name for name in report.models if holder.may_use(name)])
        else:
            body = HealthBody(_state(report))
        return json_answer(body, status=200 if report.is_healthy else 503)

    return health


def _body(report: HealthReport, names: list[str]) -> HealthBody:
    """The report on these models. Its detail names models, so that only who may see all gets it."""
    models = {
        name: [replace(copy, detail=without_places(copy.detail)) for copy in report.models[name]] for name in names
    }
    detail = without_places(report.detail) if len(names) == len(report.models) else ""
    return HealthBody(_state(report), detail, models)


def _state(report: HealthReport) -> str:
    return "ok" if report.is_healthy else "unavailable"
