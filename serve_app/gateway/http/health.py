"""`GET /health`: up or down for everybody; names, copies and load for those who may see the models."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from serve_app.backend.protocol import HealthReport
from serve_app.gateway.bodies.others import HealthBody
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.failures import without_places
from serve_app.gateway.http.middleware import authorizations_of
from serve_app.gateway.http.shell import json_answer


def health_endpoint(plane: DataPlane) -> Callable[[Request], Awaitable[Response]]:
    """200 only when requests are taken and every model that has run can answer."""

    async def health(request: Request) -> Response:
        given = authorizations_of(request.headers)
        if plane.keys is None:
            body = health_body(plane, lambda _name: True)
        elif given:
            body = health_body(plane, plane.keys.holder(given).may_use)
        else:
            report = plane.backend.health()
            body = HealthBody(_state(plane, report), num_starting=_num_starting(report))
        return json_answer(body, status=200 if body.status == "ok" else 503)

    return health


def health_body(plane: DataPlane, may_see: Callable[[str], bool]) -> HealthBody:
    """The report on what the caller may see. Its detail names models, so that only who may see all gets it."""
    report = plane.backend.health()
    models = {
        name: [replace(copy, detail=without_places(copy.detail)) for copy in copies]
        for name, copies in report.models.items()
        if may_see(name)
    }
    newcomers = {
        name: replace(newcomer, detail=without_places(newcomer.detail))
        for name, newcomer in report.newcomers.items()
        if may_see(name)
    }
    is_whole = len(models) + len(newcomers) == len(report.models) + len(report.newcomers)
    detail = without_places(report.detail) if is_whole else ""
    asleep = [name for name in report.asleep if may_see(name)]
    return HealthBody(_state(plane, report), detail, models, newcomers or None, asleep or None, _num_starting(report))


def _state(plane: DataPlane, report: HealthReport) -> str:
    if plane.intake.is_closed:
        return "draining"
    return "ok" if report.is_healthy else "unavailable"


def _num_starting(report: HealthReport) -> int:
    return sum(newcomer.state != "failed" for newcomer in report.newcomers.values())
