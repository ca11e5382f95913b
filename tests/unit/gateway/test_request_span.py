"""The Gateway's span of a request, over HTTP and gRPC: its name, how it ended, and nothing that the client wrote."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import InternalError, QueueFullError, RayshardError, ShardLostError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.request_span import RequestSpan
from serve_app.protos import rayshard_pb2 as pb
from serve_app.protos import rayshard_pb2_grpc as services
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving
from tests.fakes_serve import until
from tests.spans import SAMPLED, UNSAMPLED, KeptSpans, span_texts
from tests.unit.gateway.grpc.test_open_inference import Methods
from tests.unit.gateway.grpc.test_rayshard import Calls, pieces_of

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SECRET = "canary-4711"


@pytest.fixture
def spans() -> KeptSpans:
    return KeptSpans.make()


@pytest.fixture
def backend(tmp_path: Path) -> ScriptedBackend:
    return ScriptedBackend(save_model_dir(tmp_path))


@pytest.fixture
async def plane(backend: ScriptedBackend, spans: KeptSpans) -> DataPlane:
    return DataPlane(backend, GatewayConfig(), "g1", spans.tracing)


@pytest.fixture
async def client(plane: DataPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(build_http_app(plane)) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        yield client


def prompt(**keys: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": SECRET, "max_tokens": 3, "ignore_eos": True, **keys}


async def test_a_request_is_named_by_its_route_and_tells_its_end(client: httpx.AsyncClient, spans: KeptSpans) -> None:
    answer = await client.post(COMPLETIONS, json=prompt(), headers=SAMPLED)
    assert answer.status_code == 200
    await until(lambda: f"POST {COMPLETIONS}" in spans.names)
    span = spans.named(f"POST {COMPLETIONS}")
    assert spans.parent_of(span.name) == "client"
    assert spans.parent_of("tokenize") == span.name
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": COMPLETIONS,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "rayshard",
        "gen_ai.request.model": "tiny",
        "gen_ai.usage.input_tokens": answer.json()["usage"]["prompt_tokens"],
    }


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_response_is_traced_as_a_chat(client: httpx.AsyncClient, spans: KeptSpans, is_stream: bool) -> None:
    body = {"model": "tiny", "input": SECRET, "max_output_tokens": 3, "stream": is_stream}
    answer = await client.post("/v1/responses", json=body, headers=SAMPLED)
    assert answer.status_code == 200
    await until(lambda: "POST /v1/responses" in spans.names)
    span = spans.named("POST /v1/responses")
    assert span.attributes is not None
    assert (span.attributes["gen_ai.operation.name"], span.attributes["http.route"]) == ("chat", "/v1/responses")
    assert [spans.parent_of(name) for name in ("chat_template", "tokenize")] == [span.name] * 2


async def test_a_stream_lasts_to_its_last_event(
    client: httpx.AsyncClient, spans: KeptSpans, backend: ScriptedBackend
) -> None:
    backend.step_s = 0.02
    messages = [{"role": "user", "content": SECRET}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 5, "stream": True, "ignore_eos": True}
    answer = await client.post(CHAT, json=body)
    assert answer.text.endswith("[DONE]\n\n")
    await until(lambda: f"POST {CHAT}" in spans.names)  # the client may know the end before
    span = spans.named(f"POST {CHAT}")
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time >= 5 * 0.02 * 1e9
    assert [spans.parent_of(name) for name in ("chat_template", "tokenize")] == [span.name] * 2


@pytest.mark.parametrize(
    ("path", "changes", "failure", "name", "status", "kind", "is_fault"),
    [
        (COMPLETIONS, {"model": SECRET}, None, f"POST {COMPLETIONS}", 404, "ModelNotFoundError", False),
        (COMPLETIONS, {}, QueueFullError(SECRET), f"POST {COMPLETIONS}", 429, "QueueFullError", False),
        (COMPLETIONS, {}, ShardLostError(SECRET), f"POST {COMPLETIONS}", 503, "ShardLostError", True),
        (COMPLETIONS, {}, InternalError(SECRET), f"POST {COMPLETIONS}", 500, "InternalError", True),
        (f"/{SECRET}", {}, None, "POST", 404, None, False),
    ],
)
async def test_a_failure_is_told_by_its_kind(
    client: httpx.AsyncClient,
    spans: KeptSpans,
    backend: ScriptedBackend,
    path: str,
    changes: dict[str, Any],
    failure: RayshardError | None,
    name: str,
    status: int,
    kind: str | None,
    is_fault: bool,
) -> None:
    backend.error = failure
    answer = await client.post(path, json=prompt(**changes), headers={**SAMPLED, "x-note": SECRET})
    assert answer.status_code == status
    await until(lambda: name in spans.names)
    span = spans.named(name)
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == status
    assert span.attributes.get("error.type") == kind
    assert span.status.is_unset is not is_fault
    assert SECRET not in span_texts(spans.all)


async def test_probes_and_what_the_client_does_not_sample_leave_nothing(
    client: httpx.AsyncClient, spans: KeptSpans
) -> None:
    for path in ("/health", "/metrics", "/ping", "/v2/health/live"):
        await client.get(path)
    assert (await client.post(COMPLETIONS, json=prompt(), headers=UNSAMPLED)).status_code == 200
    assert spans.all == []


async def test_a_context_that_comes_twice_is_none(client: httpx.AsyncClient, spans: KeptSpans) -> None:
    twice = [("traceparent", SAMPLED["traceparent"])] * 2
    await client.post(COMPLETIONS, json=prompt(), headers=twice)
    await until(lambda: f"POST {COMPLETIONS}" in spans.names)
    assert spans.parent_of(f"POST {COMPLETIONS}") is None


async def test_what_the_client_calls_its_method_is_not_written(spans: KeptSpans) -> None:
    span = RequestSpan.of_http(spans.tracing, "CANARY", [(b"traceparent", SAMPLED["traceparent"].encode())])
    span.end("/v1/models", "", 0, 405, None)
    assert spans.parent_of("HTTP /v1/models") == "client"
    (kept,) = spans.all
    assert kept.attributes is not None
    assert kept.attributes["http.request.method"] == "_OTHER"
    assert "CANARY" not in span_texts(spans.all)


async def test_a_grpc_call_is_traced_like_the_rest(
    plane: DataPlane, client: httpx.AsyncClient, spans: KeptSpans
) -> None:
    assert client.base_url  # it closes the plane
    server = grpc.aio.server()
    services.add_RayshardServicer_to_server(Calls(Methods(plane)), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = services.RayshardStub(channel)  # type: ignore[no-untyped-call]
        request = pb.GenerateRequest(text=SECRET, sampling=pb.SamplingParams(max_tokens=3))
        metadata = tuple(SAMPLED.items())
        assert (await pieces_of(stub.Generate(request, metadata=metadata)))[2].completion_tokens == 3
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Embed(pb.EmbedRequest(model=SECRET, texts=["x"]), metadata=metadata)
    await until(lambda: len(spans.all) >= 3)
    await server.stop(None)
    generated = spans.named("rayshard.v1.Rayshard/Generate")
    assert spans.parent_of(generated.name) == "client"
    assert spans.parent_of("tokenize") == generated.name
    assert generated.attributes is not None
    assert generated.attributes["rpc.response.status_code"] == "OK"
    assert generated.attributes["gen_ai.operation.name"] == "text_completion"
    embedded = spans.named("rayshard.v1.Rayshard/Embed")
    assert embedded.attributes is not None
    assert embedded.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert embedded.attributes["error.type"] == "ModelNotFoundError"
    assert SECRET not in span_texts(spans.all)
