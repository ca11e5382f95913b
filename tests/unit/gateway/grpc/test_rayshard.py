"""rayshard.v1 over a real gRPC server, without Serve: the same answers and the same refusals as over HTTP."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.grpc.calls import StreamFailedError
from serve_app.gateway.http.app import build_http_app
from serve_app.protos import rayshard_pb2 as pb
from serve_app.protos import rayshard_pb2_grpc as services
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import TensorSpec
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving
from tests.unit.gateway.grpc.test_open_inference import Methods, Servicer
from tests.unit.gateway.http.test_app import until
from tests.unit.gateway.http.test_inference_routes import LABELS, TEXT_INPUTS, answer


class Calls(Servicer):
    """The streaming methods too; a stream that fails ends with the status that is set, as Serve's proxy does it."""

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """A stream."""
        with contextlib.suppress(StreamFailedError):
            async for piece in self._methods.Generate(request, grpc_context=context):
                yield piece

    async def Chat(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """A stream."""
        with contextlib.suppress(StreamFailedError):
            async for piece in self._methods.Chat(request, grpc_context=context):
                yield piece


@pytest.fixture
def backend(tmp_path: Path) -> ScriptedBackend:
    directory = save_model_dir(tmp_path)
    backend = ScriptedBackend(directory, infer_script=answer, step_s=0.002)
    three, two = TensorSpec("float32", ("batch", 3)), TensorSpec("float32", ("batch", 2))

    def described(name: str, task: str, **more: Any) -> ModelDescription:
        return ModelDescription(name, task, str(directory), 64, 64, 300, [], 1, **more)

    outputs = {"y": two, "n": TensorSpec("bool", ("batch", 2))}
    backend.extra_models = [
        described("vectors", "embed", inputs=TEXT_INPUTS, outputs={"embedding": three}, embedding_size=3),
        described("colours", "classify", inputs=TEXT_INPUTS, outputs={"logits": three}, labels=LABELS),
        described("module", "predict", inputs={"x": two}, outputs=outputs, has_tokenizer=False),
    ]
    return backend


@pytest.fixture
async def plane(backend: ScriptedBackend) -> DataPlane:
    return DataPlane(backend, GatewayConfig(max_request_bytes=2**20))


@pytest.fixture
async def client(plane: DataPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(build_http_app(plane)) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        yield client


@pytest.fixture
async def stub(plane: DataPlane, client: httpx.AsyncClient) -> AsyncIterator[Any]:
    assert client.base_url  # it closes the plane
    server = grpc.aio.server()
    services.add_RayshardServicer_to_server(Calls(Methods(plane)), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield services.RayshardStub(channel)  # type: ignore[no-untyped-call]
    await server.stop(None)


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def pieces_of(stream: Any) -> tuple[dict[int, str], dict[int, str], Any]:
    """Texts and finish reasons by choice, and the counts."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    usage = None
    async for piece in stream:
        if piece.HasField("usage"):
            usage = piece.usage
            continue
        texts[piece.choice] = texts.get(piece.choice, "") + piece.text
        if piece.finish_reason:
            reasons[piece.choice] = piece.finish_reason
    return texts, reasons, usage


async def test_a_text_is_continued_as_over_http(stub: Any, client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.num_cached_tokens = 3
    sampling = pb.SamplingParams(max_tokens=9, n=2, seed=5, stop=["zzz"])
    texts, reasons, usage = await pieces_of(stub.Generate(pb.GenerateRequest(text="hello", sampling=sampling)))
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 9, "n": 2, "seed": 5, "stop": ["zzz"]}
    plain = await post(client, "/v1/completions", **body)
    assert texts == {one["index"]: one["text"] for one in plain["choices"]}
    assert reasons == {one["index"]: one["finish_reason"] for one in plain["choices"]}
    assert usage.prompt_tokens == plain["usage"]["prompt_tokens"]
    assert usage.completion_tokens == plain["usage"]["completion_tokens"]
    assert usage.cached_prompt_tokens == plain["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


async def test_an_answer_is_held_to_a_form_as_over_http(stub: Any, backend: ScriptedBackend) -> None:
    for held, part in (
        (pb.StructuredOutputs(json='{"enum": [1]}', disable_any_whitespace=True), '"whitespace_flexible": false'),
        (pb.StructuredOutputs(choice=["a", "b"]), 'start: "a" | "b"'),
    ):
        sampling = pb.SamplingParams(max_tokens=2, structured_outputs=held)
        await pieces_of(stub.Generate(pb.GenerateRequest(text="hello", sampling=sampling)))
        assert part in (backend.requests[-1].params.grammar or "")
    sampling = pb.SamplingParams(structured_outputs=pb.StructuredOutputs(regex="(?=a)b"))
    with pytest.raises(grpc.aio.AioRpcError, match="cannot be used"):
        await pieces_of(stub.Generate(pb.GenerateRequest(text="hello", sampling=sampling)))


async def test_token_ids_go_in_and_come_out(stub: Any, backend: ScriptedBackend) -> None:
    ids = backend.ids("abc")
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=pb.SamplingParams(max_tokens=len(ids)))
    out = [token_id async for piece in stub.Generate(request) for token_id in piece.token_ids]
    assert out == ids
    assert backend.requests[0].prompt_token_ids == ids
    assert backend.requests[0].owner == "host 127.0.0.1"


async def test_a_conversation_is_answered_as_over_http(stub: Any, client: httpx.AsyncClient) -> None:
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    request = pb.ChatRequest(messages=[pb.Message(**one) for one in messages], sampling=pb.SamplingParams(max_tokens=7))
    texts, _reasons, _usage = await pieces_of(stub.Chat(request))
    plain = await post(client, "/v1/chat/completions", model="tiny", messages=messages, max_tokens=7)
    assert texts == {0: plain["choices"][0]["message"]["content"]}


async def test_vectors_and_labels_are_those_of_http(stub: Any, client: httpx.AsyncClient) -> None:
    vectors = await stub.Embed(pb.EmbedRequest(model="vectors", texts=["ab", "c"], dimensions=2))
    plain = await post(client, "/v1/embeddings", model="vectors", input=["ab", "c"], dimensions=2)
    assert [list(one.values) for one in vectors.embeddings] == [one["embedding"] for one in plain["data"]]
    assert vectors.usage.prompt_tokens == plain["usage"]["prompt_tokens"]
    classes = await stub.Classify(pb.ClassifyRequest(texts=["ab"], top_k=2))
    (expected,) = (await post(client, "/v1/classify", model="colours", input=["ab"], top_k=2))["data"]
    (one,) = classes.classifications
    assert one.label == expected["label"]
    assert [(label.label, label.score) for label in one.labels] == [
        (label["label"], pytest.approx(label["score"])) for label in expected["labels"]
    ]


async def test_a_module_takes_and_gives_tensors(stub: Any) -> None:
    array = np.array([[1, -2], [3, 4]], np.float32)
    tensor = pb.Tensor(dtype="float32", shape=[2, 2], data=array.tobytes())
    made = await stub.Predict(pb.PredictRequest(model="module", inputs={"x": tensor}))
    assert np.array_equal(np.frombuffer(made.outputs["y"].data, np.float32).reshape(2, 2), array * 2)
    assert (made.outputs["n"].dtype, list(made.outputs["n"].shape)) == ("bool", [2, 2])


WRONG = [
    ("Generate", pb.GenerateRequest(), "prompt is missing"),
    ("Generate", pb.GenerateRequest(text="a", sampling=pb.SamplingParams(top_p=7)), "top_p=7"),
    ("Generate", pb.GenerateRequest(text="a", sampling=pb.SamplingParams(max_tokens=10_000)), "max_tokens=10000"),
    ("Generate", pb.GenerateRequest(token_ids=pb.TokenIds(ids=[9999])), "token id 9999"),
    ("Chat", pb.ChatRequest(), "messages is empty"),
    ("Chat", pb.ChatRequest(messages=[pb.Message(role="king", content="a")]), "role"),
    ("Embed", pb.EmbedRequest(model="vectors"), "input is empty"),
    ("Embed", pb.EmbedRequest(model="vectors", texts=["a"], dimensions=9), "dimensions=9"),
    ("Embed", pb.EmbedRequest(model="tiny", texts=["a"]), "serves generate, not embed"),
    ("Classify", pb.ClassifyRequest(texts=["a"], threshold=0.5), "threshold is for models of several labels"),
    ("Predict", pb.PredictRequest(model="module"), "inputs.x is missing"),
    ("Predict", pb.PredictRequest(model="module", inputs={"x": pb.Tensor(dtype="float32", shape=[2, 2])}), "0 bytes"),
    ("Predict", pb.PredictRequest(model="module", inputs={"x": pb.Tensor(dtype="f", shape=[2])}), "'f', which"),
]


@pytest.mark.parametrize(("method", "request_", "message"), WRONG)
async def test_a_wrong_call_is_refused_with_the_message_of_http(
    stub: Any, method: str, request_: Any, message: str
) -> None:
    call = getattr(stub, method)(request_)
    work = pieces_of(call) if method in ("Generate", "Chat") else call
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await work
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in str(caught.value.details())
    assert len((await stub.Embed(pb.EmbedRequest(model="vectors", texts=["a"]))).embeddings) == 1


async def test_a_model_that_is_not_there_is_not_found(stub: Any) -> None:
    assert (await stub.Embed(pb.EmbedRequest(model="no", texts=["a"])).code()) is grpc.StatusCode.NOT_FOUND


async def test_a_stream_ends_with_its_time_and_frees_its_sequence(stub: Any, backend: ScriptedBackend) -> None:
    request = pb.GenerateRequest(text="a", sampling=pb.SamplingParams(max_tokens=500))
    stream = stub.Generate(request, metadata=[("x-request-timeout-ms", "80")])
    with pytest.raises(grpc.aio.AioRpcError, match=r"longer than 0\.08 s") as caught:
        await pieces_of(stream)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (backend.num_open, backend.num_aborted) == (0, 1)


async def test_a_stream_that_is_cancelled_frees_its_sequence(stub: Any, backend: ScriptedBackend) -> None:
    stream = stub.Generate(pb.GenerateRequest(text="a", sampling=pb.SamplingParams(max_tokens=500)))
    await stream.read()
    stream.cancel()
    await until(lambda: backend.num_open == 0)
    assert backend.num_aborted == 1


async def test_a_message_above_the_limit_is_refused(stub: Any) -> None:
    calls = [
        stub.Embed(pb.EmbedRequest(model="vectors", texts=["a" * 2**21])),
        stub.Classify(pb.ClassifyRequest(model="colours", texts=["a" * 2**21])),
        stub.Predict(pb.PredictRequest(model="module", inputs={"x": pb.Tensor(data=bytes(2**21))})),
        stub.Generate(pb.GenerateRequest(model="tiny", text="a" * 2**21)).read(),
        stub.Chat(pb.ChatRequest(model="tiny", messages=[pb.Message(role="user", content="a" * 2**21)])).read(),
    ]
    for one in calls:
        with pytest.raises(grpc.aio.AioRpcError, match="more than max_request_bytes=1048576") as caught:
            await one
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_metadata_names_the_conversation(stub: Any, backend: ScriptedBackend) -> None:
    for name in ("talk", "talk", "walk"):
        request = pb.GenerateRequest(text="hello", sampling=pb.SamplingParams(max_tokens=2))
        await pieces_of(stub.Generate(request, metadata=[("x-session-id", name)]))
    first, second, third = (request.session for request in backend.requests)
    assert first == second != third
    assert "" not in (first, third)


async def test_priority_and_time_travel_as_over_http(stub: Any, backend: ScriptedBackend) -> None:
    sampling = pb.SamplingParams(max_tokens=2, priority=-3)
    limit = [("x-request-timeout-ms", "60000")]
    await pieces_of(stub.Generate(pb.GenerateRequest(text="hello", sampling=sampling), metadata=limit))
    await pieces_of(stub.Generate(pb.GenerateRequest(text="hello", sampling=pb.SamplingParams(max_tokens=2))))
    first, second = backend.requests
    assert (first.priority, second.priority, second.time_left_s) == (-3, 0, None)
    assert first.time_left_s is not None
    assert 10 < first.time_left_s < 60
    two = pb.Tensor(dtype="float32", shape=[1, 2], data=np.ones(2, np.float32).tobytes())
    await stub.Predict(pb.PredictRequest(model="module", inputs={"x": two}, priority=8), metadata=limit)
    await stub.Embed(pb.EmbedRequest(model="vectors", texts=["a"], priority=9))
    assert [request.priority for request in backend.infer_requests] == [8, 9]
    with pytest.raises(grpc.aio.AioRpcError, match="priority"):
        await pieces_of(stub.Generate(pb.GenerateRequest(text="hello", sampling=pb.SamplingParams(priority=5000))))


async def test_calls_are_counted_by_method_model_and_end(
    stub: Any, client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    await stub.Embed(pb.EmbedRequest(model="vectors", texts=["a", "b"]))
    async for _piece in stub.Generate(pb.GenerateRequest(text="hello", sampling=pb.SamplingParams(max_tokens=4))):
        pass
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Classify(pb.ClassifyRequest(model="nosuch", texts=["a"]))
    with pytest.raises(grpc.aio.AioRpcError):
        async for _piece in stub.Chat(pb.ChatRequest(), metadata=[("x-request-timeout-ms", "soon")]):
            pass
    backend.step_s = 0.05
    stream = stub.Generate(pb.GenerateRequest(text="hello", sampling=pb.SamplingParams(max_tokens=50)))
    await stream.read()
    stream.cancel()
    ends = {
        ("grpc Embed", "vectors", "2xx"): 1,
        ("grpc Generate", "tiny", "2xx"): 1,
        ("grpc Generate", "tiny", "4xx"): 1,  # its client has left
        ("grpc Classify", "", "4xx"): 1,
        ("grpc Chat", "", "4xx"): 1,
    }
    reasons = {("tiny", "aborted"): 1, ("", "model_not_found"): 1, ("", "invalid"): 1}

    async def counts(name: str, *labels: str) -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families((await client.get("/metrics")).text)
        samples = [one for family in families for one in family.samples if one.name == name and one.value]
        return {tuple(one.labels[label] for label in labels): one.value for one in samples}

    labels = ("route", "model", "status")
    async with asyncio.timeout(10):
        while not ends.items() <= (await counts("rayshard_requests_total", *labels)).items():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await counts("rayshard_requests_refused_total", "model", "reason") == reasons
    latencies = await counts("rayshard_e2e_request_latency_seconds_count", "route", "model")
    assert latencies == {("grpc Embed", "vectors"): 1, ("grpc Generate", "tiny"): 1}
    assert (await counts("rayshard_prompt_tokens_total", "model")).keys() == {("vectors",), ("tiny",)}


TWO_ZEROS = pb.Tensor(dtype="FP32", shape=[1, 2], data=bytes(8))


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Embed", pb.EmbedRequest(model="vectors", texts=["ab"])),
        ("Classify", pb.ClassifyRequest(model="colours", texts=["ab"])),
        (
            "Predict",
            pb.PredictRequest(model="module", inputs={"x": pb.Tensor(dtype="FP32", shape=[1, 2], data=bytes(8))}),
        ),
    ],
)
async def test_a_call_waits_for_a_model_that_is_about_to_be_known(
    stub: Any, backend: ScriptedBackend, method: str, request_: Any
) -> None:
    backend.coming, backend.extra_models = backend.extra_models, []
    asking = asyncio.ensure_future(getattr(stub, method)(request_))
    await until(lambda: backend.num_waits == 1)
    backend.may_come.set()
    await asking


async def test_a_call_waits_for_no_model_beyond_its_own_time(stub: Any, backend: ScriptedBackend) -> None:
    backend.coming, backend.extra_models = backend.extra_models, []
    stream = stub.Generate(pb.GenerateRequest(model="vectors", text="a"), metadata=[("x-request-timeout-ms", "20")])
    async with asyncio.timeout(1):
        assert await stream.code() is grpc.StatusCode.UNAVAILABLE


async def test_what_a_call_has_waited_for_its_model_is_taken_off_its_time(stub: Any, backend: ScriptedBackend) -> None:
    backend.coming, backend.name = backend.models()[:1], "another"
    name = backend.coming[0].name
    limit = [("x-request-timeout-ms", "1000")]
    asking = asyncio.ensure_future(pieces_of(stub.Generate(pb.GenerateRequest(model=name, text="a"), metadata=limit)))
    await until(lambda: backend.num_waits == 1)
    began_s = time.monotonic()
    await asyncio.sleep(0.3)
    waited_s = time.monotonic() - began_s
    backend.name = name
    backend.may_come.set()
    await asking
    (request,) = backend.requests
    assert request.time_left_s is not None
    assert 0 < request.time_left_s <= 1 - waited_s
