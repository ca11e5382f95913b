"""`GET /console/state`: the models that the caller may use, with what their copies do now."""

import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from serve_app.gateway.bodies.console import ConsoleModel, ConsoleState
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.open_inference import server_version
from serve_app.gateway.http.health import health_body
from serve_app.gateway.http.shell import json_answer
from serve_app.metrics.of_gateway import GatewayMetrics
from serve_app.types.models import ModelDescription

STATE_PATH = "/console/state"


def console_state_endpoint(plane: DataPlane) -> Callable[[Request], Awaitable[Response]]:
    """Needs a key where keys are used; a look, asked for every second, counts against no limit of the key's."""
    version = server_version()  # reads files

    async def state(request: Request) -> Response:
        holder = None if plane.keys is None else plane.keys.holder(request.headers.getlist("authorization"))
        may_see = (lambda _name: True) if holder is None else holder.may_use
        models = [_model(model, plane.metrics) for model in plane.backend.models() if may_see(model.name)]
        body = ConsoleState(
            version=version,
            told_s=time.time(),
            gateway=plane.metrics.gateway,
            has_keys=holder is not None,
            is_admin=holder is None or holder.is_admin,
            health=health_body(plane, may_see),
            models=models,
        )
        answer = json_answer(body)
        answer.headers["cache-control"] = "no-store"
        return answer

    return state


def _model(model: ModelDescription, metrics: GatewayMetrics) -> ConsoleModel:
    counts = metrics.token_counts(model.name)
    return ConsoleModel(
        name=model.name,
        task=model.task,
        max_model_len=model.max_model_len,
        takes_text=model.has_tokenizer,
        inputs={} if model.has_tokenizer else model.inputs,
        num_prompt_tokens=counts.num_prompt_tokens,
        num_output_tokens=counts.num_output_tokens,
        num_first_tokens=counts.num_first_tokens,
        first_token_sum_s=counts.first_token_sum_s,
    )
