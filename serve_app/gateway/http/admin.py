"""`GET /v1/admin/plan`: what each copy of each model was predicted to take and do, beside what it takes and does."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from serve_app.errors import ForbiddenError
from serve_app.gateway.bodies.others import PlanBody
from serve_app.gateway.caller import is_admin
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.shell import RequestShell, json_answer
from serve_app.types.plans import CopyAccount

PLAN_PATH = "/v1/admin/plan"


def plan_endpoint(plane: DataPlane, shell: RequestShell) -> Callable[[Request], Awaitable[Response]]:
    """For administrators where keys are used: it names all models."""

    async def plan(request: Request) -> Response:
        if not is_admin():
            raise ForbiddenError(f"{PLAN_PATH} is for keys made with --admin")
        return json_answer(_body(plane, await shell.run(request, plane.backend.accounts())))

    return plan


def _body(plane: DataPlane, accounts: list[CopyAccount]) -> PlanBody:
    """By model, and the copies that health knows and that have not answered."""
    names = sorted(model.name for model in plane.backend.models() if model.graph_gives is None)
    models = {name: [account for account in accounts if account.model == name] for name in names}
    known = plane.backend.health().models
    silent = {
        name: sorted({copy.replica_id for copy in known.get(name, [])} - {account.replica_id for account in found})
        for name, found in models.items()
    }
    return PlanBody(models, {name: copies for name, copies in silent.items() if copies} or None)
