"""HTTP endpoints of models that are done with an entry after one step, and of graphs."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from serve_app.gateway.bodies.convert import parse_body
from serve_app.gateway.bodies.inference import (
    ClassifyBody,
    EmbeddingsBody,
    PredictBody,
    PreprocessBody,
    RerankBody,
    ScoreBody,
)
from serve_app.gateway.calls.model_calls import ModelCalls
from serve_app.gateway.http.shell import RequestShell, json_bytes

Body = TypeVar("Body", bound=msgspec.Struct)
Endpoint = Callable[[Request], Awaitable[Response]]


def inference_endpoints(calls: ModelCalls, shell: RequestShell) -> dict[str, Endpoint]:
    """The endpoint of each path; all take POST."""

    def endpoint(body_type: type[Body], call: Callable[[Body], Coroutine[Any, Any, object]]) -> Endpoint:
        async def answer(request: Request) -> Response:
            body = parse_body(await shell.read(request), body_type)
            return json_bytes(msgspec.json.encode(await shell.run(request, call(body))))

        return answer

    return {
        "/v1/embeddings": endpoint(EmbeddingsBody, calls.embed),
        "/v1/classify": endpoint(ClassifyBody, calls.classify),
        "/v1/score": endpoint(ScoreBody, calls.score),
        "/v1/rerank": endpoint(RerankBody, calls.rerank),
        "/v1/preprocess": endpoint(PreprocessBody, calls.preprocess),
        "/predict": endpoint(PredictBody, calls.predict),
    }
