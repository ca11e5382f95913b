"""HTTP endpoints of models that are done with an entry after one step, and of graphs."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from serve_app.errors import RequestError
from serve_app.gateway.bodies.convert import convert_body
from serve_app.gateway.bodies.explain import ExplainBody
from serve_app.gateway.bodies.inference import (
    ClassifyBody,
    EmbeddingList,
    EmbeddingsBody,
    PredictBody,
    PreprocessBody,
    RerankBody,
    ScoreBody,
)
from serve_app.gateway.bodies.known_apis import CohereEmbedBody, PooledList, PoolingBody, TeiEmbedBody, TeiRerankBody
from serve_app.gateway.calls.chat_inputs import TASKS, with_input
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.vector_bytes import BYTE_FORMATS, VectorBytes, vector_bytes
from serve_app.gateway.http.openai_routes import OpenAIEndpoints
from serve_app.gateway.http.shell import RequestShell, json_bytes

Body = TypeVar("Body", bound=msgspec.Struct)
VectorsBody = TypeVar("VectorsBody", bound=EmbeddingsBody)
Call = Callable[[dict[str, Any]], Coroutine[Any, Any, object]]
Endpoint = Callable[[Request], Awaitable[Response]]


def inference_endpoints(plane: DataPlane, shell: RequestShell, openai: OpenAIEndpoints) -> dict[str, Endpoint]:
    """The endpoint of each path; all take POST."""
    calls = _calls_by_path(plane)

    def endpoint(call: Call) -> Endpoint:
        async def answer(request: Request) -> Response:
            return await run(request, call, await shell.read_object(request))

        return answer

    async def run(request: Request, call: Call, given: dict[str, Any]) -> Response:
        async def work() -> object:
            await plane.models.meet(given.get("model"))
            return await call(given)

        made = await shell.run(request, work())
        return _bytes_answer(made) if isinstance(made, VectorBytes) else json_bytes(msgspec.json.encode(made))

    async def invoke(request: Request) -> Response:
        """SageMaker's one path: what is called follows from the body's keys."""
        given = await shell.read_object(request)
        if "messages" in given and not await _is_for_input(given, plane):
            return await openai.answer_chat(request, given)
        if "prompt" in given:
            return await openai.answer_completion(request, given)
        return await run(request, calls[await _invoked_path(given, plane)], given)

    return {**{path: endpoint(call) for path, call in calls.items()}, "/invocations": invoke}


def _calls_by_path(plane: DataPlane) -> dict[str, Call]:
    calls, known = plane.calls, plane.known_calls

    def of(body_type: type[Body], call: Callable[[Body], Coroutine[Any, Any, object]]) -> Call:
        async def run(given: dict[str, Any]) -> object:
            return await call(convert_body(given, body_type))

        return run

    def of_chat(body_type: type[Body], call: Callable[[Body], Coroutine[Any, Any, object]]) -> Call:
        async def run(given: dict[str, Any]) -> object:
            return await call(convert_body(await with_input(plane, given), body_type))

        return run

    rerank, rerank_texts = of(RerankBody, calls.rerank), of(TeiRerankBody, known.tei_rerank)

    async def rerank_any(given: dict[str, Any]) -> object:
        return await (rerank_texts if "texts" in given else rerank)(given)

    return {
        "/v1/embeddings": of_chat(EmbeddingsBody, _or_bytes(calls.embed)),
        "/v1/classify": of_chat(ClassifyBody, calls.classify),
        "/v1/score": of(ScoreBody, calls.score),
        "/v1/rerank": rerank_any,
        "/v1/explain": of(ExplainBody, plane.explanations.explain),
        "/v1/preprocess": of(PreprocessBody, calls.preprocess),
        "/predict": of(PredictBody, calls.predict),
        "/embed": of(TeiEmbedBody, known.tei_embed),
        "/v2/embed": of(CohereEmbedBody, known.cohere_embed),
        "/pooling": of_chat(PoolingBody, _or_bytes(known.pool)),
    }


def _or_bytes(
    call: Callable[[VectorsBody], Coroutine[Any, Any, EmbeddingList | PooledList]],
) -> Callable[[VectorsBody], Coroutine[Any, Any, EmbeddingList | PooledList | VectorBytes]]:
    """The call, with bytes where its body asks for them."""

    async def run(body: VectorsBody) -> EmbeddingList | PooledList | VectorBytes:
        answer = await call(body)
        return vector_bytes(answer, body) if body.encoding_format in BYTE_FORMATS else answer

    return run


def _bytes_answer(made: VectorBytes) -> Response:
    headers = {} if made.metadata is None else {"metadata": made.metadata.decode()}
    return Response(made.content, headers=headers, media_type="application/octet-stream")


async def _is_for_input(given: dict[str, Any], plane: DataPlane) -> bool:
    """Whether messages are for a model that embeds or classifies. Raises ModelNotFoundError."""
    name = given.get("model")
    await plane.models.meet(name)
    return isinstance(name, str) and plane.models.describe(name).task in TASKS


async def _invoked_path(given: dict[str, Any], plane: DataPlane) -> str:
    """The path that takes such a body. Raises RequestError."""
    if "query" in given:
        return "/v1/rerank"
    if not {"text_1", "queries", "data_1"}.isdisjoint(given):
        return "/v1/score"
    if "task" in given:
        return "/pooling"
    if "input" in given or "messages" in given:
        name = given.get("model")
        await plane.models.meet(name)
        model = plane.models.for_tasks(name if isinstance(name, str) else None, ("embed", "classify", "score", "graph"))
        gives = {"embedding": "embed", "label": "classify"}.get(model.graph_gives or "", model.task)
        return {"embed": "/v1/embeddings", "classify": "/v1/classify"}.get(gives, "/pooling")
    if "text" in given or "inputs" in given:
        return "/predict"
    raise RequestError(
        "body has none of messages, prompt, input, query, text_1, text and inputs; send one", field="body"
    )
