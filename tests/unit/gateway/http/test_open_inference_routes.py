"""The Open Inference Protocol over HTTP, called by tritonclient, with scripted models behind the Gateway."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.open_inference_tensors import DTYPE_OF
from serve_app.gateway.http.app import build_http_app
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import Item, TensorSpec
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving
from tests.unit.gateway.http.test_inference_routes import LABELS, TEXT_INPUTS, answer

T = TypeVar("T")
CARRIED = [(name, is_binary) for name in DTYPE_OF for is_binary in (True, False) if name != "BF16"]
CARRIED.remove(("FP16", False))  # tritonclient sends none as JSON
ONE_TEXT = {"name": "text_input", "datatype": "BYTES", "shape": [1]}


def described(directory: Path, name: str, task: str, **more: Any) -> ModelDescription:
    return ModelDescription(name, task, str(directory), 64, 64, 300, [], 1, **more)


def twice(item: Item) -> Item:
    """Gives back what a module of tensors gets, and answers texts by rule."""
    if "input_ids" in item:
        return answer(item)
    return {f"{name}_again": tensor for name, tensor in item.items()}


@pytest.fixture
def backend(tmp_path: Path) -> ScriptedBackend:
    directory = save_model_dir(tmp_path)
    backend = ScriptedBackend(directory, infer_script=twice)
    vector = {"embedding": TensorSpec("float32", ("batch", 3))}
    logits = {"logits": TensorSpec("float32", ("batch", 3))}
    backend.extra_models = [
        described(directory, "vectors", "embed", inputs=TEXT_INPUTS, outputs=vector, embedding_size=3),
        described(directory, "team/colours", "classify", inputs=TEXT_INPUTS, outputs=logits, labels=LABELS),
    ]
    for name, dtype in DTYPE_OF.items():
        spec = TensorSpec(dtype, ("batch", 2))
        ports = {"inputs": {"x": spec}, "outputs": {"x_again": spec}, "has_tokenizer": False}
        backend.extra_models.append(described(directory, f"of_{name}", "predict", **ports))
    two = {"a": TensorSpec("float32", ("batch", 2)), "b": TensorSpec("int64", ("batch",))}
    again = {f"{name}_again": spec for name, spec in two.items()}
    backend.extra_models.append(described(directory, "two", "predict", inputs=two, outputs=again, has_tokenizer=False))
    return backend


@pytest.fixture
async def url(backend: ScriptedBackend) -> AsyncIterator[str]:
    async with serving(build_http_app(DataPlane(backend, GatewayConfig()))) as url:
        yield url


async def ask(url: str, call: Callable[[triton.InferenceServerClient], T]) -> T:
    """Run a blocking client in a thread: the server is on this loop."""

    def run() -> T:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        try:
            return call(client)
        finally:
            client.close()

    return await asyncio.to_thread(run)


def tensor(name: str, array: np.ndarray, datatype: str, *, is_binary: bool = True) -> triton.InferInput:
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=is_binary)
    return given


def texts(*values: str) -> np.ndarray:
    return np.array([value.encode() for value in values], dtype=np.object_)


async def test_the_server_and_its_models_describe_themselves(url: str, backend: ScriptedBackend) -> None:
    assert await ask(url, lambda client: client.is_server_live())
    assert await ask(url, lambda client: client.is_server_ready())
    assert await ask(url, lambda client: client.is_model_ready("tiny"))
    server = await ask(url, lambda client: client.get_server_metadata())
    assert server["name"] == "rayshard"
    assert "binary_tensor_data" in server["extensions"]
    colours = await ask(url, lambda client: client.get_model_metadata("team/colours"))
    assert colours["versions"] == ["1"]
    assert colours["inputs"] == [{"name": "text_input", "datatype": "BYTES", "shape": [-1]}]
    assert colours["outputs"][1] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}
    two = await ask(url, lambda client: client.get_model_metadata("two", "1"))
    assert two["inputs"] == [
        {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "b", "datatype": "INT64", "shape": [-1]},
    ]
    backend.is_healthy = False
    assert not await ask(url, lambda client: client.is_server_ready())


@pytest.mark.parametrize(("datatype", "is_binary"), CARRIED)
async def test_a_tensor_comes_back_as_it_was_sent(url: str, datatype: str, is_binary: bool) -> None:
    array = np.array([[0, 1], [1, 0], [1, 1]], dtype=DTYPE_OF[datatype])
    outputs = [triton.InferRequestedOutput("x_again", binary_data=is_binary)]
    given = [tensor("x", array, datatype, is_binary=is_binary)]
    result = await ask(url, lambda client: client.infer(f"of_{datatype}", given, outputs=outputs, request_id="7"))
    assert np.array_equal(result.as_numpy("x_again"), array)
    assert result.as_numpy("x_again").dtype == array.dtype
    assert result.get_response()["id"] == "7"


async def test_large_integers_of_json_come_back_whole(url: str) -> None:
    array = np.array([[1, 2**64 - 1], [2**53 + 1, 2**63]], np.uint64)
    outputs = [triton.InferRequestedOutput("x_again", binary_data=False)]
    given = [tensor("x", array, "UINT64", is_binary=False)]
    result = await ask(url, lambda client: client.infer("of_UINT64", given, outputs=outputs))
    assert result.as_numpy("x_again").tolist() == array.tolist()


async def test_a_client_of_tritons_sees_configurations_the_index_and_statistics(url: str) -> None:
    config = await ask(url, lambda client: client.get_model_config("two"))
    assert (config["name"], config["max_batch_size"]) == ("two", 0)
    assert config["input"] == [
        {"name": "a", "data_type": "TYPE_FP32", "dims": [-1, 2]},
        {"name": "b", "data_type": "TYPE_INT64", "dims": [-1]},
    ]
    colours = await ask(url, lambda client: client.get_model_config("team/colours", "1"))
    assert colours["output"][0]["data_type"] == "TYPE_STRING"
    index = await ask(url, lambda client: client.get_model_repository_index())
    assert {"name": "team/colours", "version": "1", "state": "READY", "reason": ""} in index
    await ask(url, lambda client: client.infer("of_FP32", [tensor("x", np.ones((1, 2), np.float32), "FP32")]))
    with pytest.raises(InferenceServerException):
        await ask(url, lambda client: client.infer("of_FP32", [tensor("x", np.ones((1, 3), np.float32), "FP32")]))
    (stats,) = (await ask(url, lambda client: client.get_inference_statistics("of_FP32")))["model_stats"]
    assert (stats["inference_count"], stats["inference_stats"]["fail"]["count"]) == (1, 1)
    assert stats["inference_stats"]["success"]["ns"] > 0
    every = (await ask(url, lambda client: client.get_inference_statistics()))["model_stats"]
    assert {one["name"]: one["inference_count"] for one in every}["two"] == 0


async def test_the_index_shows_what_can_answer(url: str, backend: ScriptedBackend) -> None:
    backend.is_healthy = False
    async with httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        every = (await client.post("/v2/repository/index")).json()
        ready = (await client.post("/v2/repository/index", json={"ready": True})).json()
    assert {one["state"] for one in every} == {"UNAVAILABLE"}
    assert ready == []


async def test_the_largest_classes_come_as_texts(url: str) -> None:
    given = [tensor("text_input", texts("ab", "c"), "BYTES")]
    plain = await ask(url, lambda client: client.infer("team/colours", given))
    rows = plain.as_numpy("probabilities")
    outputs = [triton.InferRequestedOutput("probabilities", class_count=2), triton.InferRequestedOutput("label")]
    result = await ask(url, lambda client: client.infer("team/colours", given, outputs=outputs))
    shown = result.as_numpy("probabilities")
    assert shown.shape == (2, 2)
    for row, found, label in zip(rows, shown, result.as_numpy("label"), strict=True):
        order = np.argsort(-row, kind="stable")[:2]
        assert [one.decode() for one in found] == [f"{row[index]:f}:{index}:{LABELS[index]}" for index in order]
        assert found[0].decode().endswith(f":{label.decode()}")
    numbers = [tensor("x", np.array([[3, 7], [9, 9]], np.int32), "INT32")]
    outputs = [triton.InferRequestedOutput("x_again", binary_data=False, class_count=5)]
    result = await ask(url, lambda client: client.infer("of_INT32", numbers, outputs=outputs))
    assert result.as_numpy("x_again").tolist() == [["7:1", "3:0"], ["9:0", "9:1"]]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"classification": -1}, "not a number of classes"),
        ({"classification": 1.5}, "not a number of classes"),
        ({"classification": True}, "not a number of classes"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 8}, "shared memory"),
        ({"typo": 1}, "'typo' is unknown"),
    ],
)
async def test_what_an_output_cannot_be_is_refused(url: str, parameters: dict[str, Any], message: str) -> None:
    given = {**body(), "outputs": [{"name": "x_again", "parameters": parameters}]}
    async with httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        refused = await client.post("/v2/models/of_FP32/infer", json=given)
        assert (refused.status_code, message in refused.json()["error"]) == (400, True), refused.text
        given["outputs"] = [{"name": "x_again", "parameters": {"classification": 0, "content_type": "np"}}]
        assert (await client.post("/v2/models/of_FP32/infer", json=given)).status_code == 200
        shared = body(parameters={"shared_memory_region": "r"})
        assert "shared memory" in (await client.post("/v2/models/of_FP32/infer", json=shared)).json()["error"]


async def test_classes_of_texts_are_refused(url: str) -> None:
    given = [tensor("text_input", texts("ab"), "BYTES")]
    outputs = [triton.InferRequestedOutput("label", class_count=2)]
    with pytest.raises(InferenceServerException, match="is for outputs of numbers"):
        await ask(url, lambda client: client.infer("team/colours", given, outputs=outputs))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nope", 404),
        ("GET", "/v2/models/nope/config", 404),
        ("GET", "/v2/models/of_FP32/versions/7/stats", 404),
        ("POST", "/v2/models/of_FP32", 405),
        ("POST", "/v2/repository/models/of_FP32/load", 404),
        ("GET", "/v2/logging", 404),
    ],
)
async def test_every_error_under_v2_is_a_text(url: str, method: str, path: str, status: int) -> None:
    async with httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        answer = await client.request(method, path)
        assert (answer.status_code, type(answer.json()["error"])) == (status, str)
        large = await client.request(method, path, headers={f"x-{index}": "a" * 1000 for index in range(66)})
        assert (large.status_code, type(large.json()["error"])) == (431, str)


async def test_coheres_paths_keep_their_own_errors(url: str) -> None:
    async with httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        error = (await client.post("/v2/rerank", json={})).json()
        assert (error["error"]["param"], error["message"]) == ("query", error["error"]["message"])


async def test_bfloat16_comes_as_bytes(url: str) -> None:
    array = np.array([[0.5, -1.25]], ml_dtypes.bfloat16)
    result = await ask(url, lambda client: client.infer("of_BF16", [tensor("x", array, "BF16")]))
    assert np.array_equal(result.as_numpy("x_again"), array)


async def test_several_inputs_and_only_the_outputs_that_are_asked_for(url: str) -> None:
    a, b = np.ones((4, 2), np.float32), np.arange(4)
    given = [tensor("b", b, "INT64"), tensor("a", a, "FP32", is_binary=False)]
    result = await ask(url, lambda client: client.infer("two", given))
    assert np.array_equal(result.as_numpy("a_again"), a)
    assert np.array_equal(result.as_numpy("b_again"), b)
    wanted = [triton.InferRequestedOutput("b_again")]
    result = await ask(url, lambda client: client.infer("two", given, outputs=wanted))
    assert [one["name"] for one in result.get_response()["outputs"]] == ["b_again"]


@pytest.mark.parametrize("is_binary", [True, False])
async def test_texts_become_vectors_and_labels(url: str, is_binary: bool) -> None:
    words = tensor("text_input", texts("ab", "c ü"), "BYTES", is_binary=is_binary)
    async with httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        plain = (await client.post("/v1/embeddings", json={"model": "vectors", "input": ["ab", "c ü"]})).json()
        classes = (await client.post("/v1/classify", json={"model": "team/colours", "input": ["ab", "c ü"]})).json()
    result = await ask(url, lambda client: client.infer("vectors", [words]))
    assert result.as_numpy("embedding").tolist() == [one["embedding"] for one in plain["data"]]
    result = await ask(url, lambda client: client.infer("team/colours", [words]))
    assert [label.decode() for label in result.as_numpy("label").tolist()] == [one["label"] for one in classes["data"]]
    assert np.allclose(result.as_numpy("probabilities"), [one["probs"] for one in classes["data"]])
    short = await ask(url, lambda client: client.infer("vectors", [words], parameters={"dimensions": 2}))
    assert short.as_numpy("embedding").shape == (2, 2)


async def test_a_generator_continues_a_text(url: str, backend: ScriptedBackend) -> None:
    words = tensor("text_input", texts("hello"), "BYTES")
    parameters = {"max_tokens": 5, "temperature": 0, "seed": 3}
    result = await ask(url, lambda client: client.infer("tiny", [words], parameters=parameters))
    async with httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        body = {"model": "tiny", "prompt": "hello", **parameters}
        expected = (await client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
    assert [text.decode() for text in result.as_numpy("text_output").tolist()] == [expected]
    assert backend.requests[0].params.seed == 3


async def test_the_asyncio_client_and_compressed_bodies_work_too(url: str) -> None:
    given = triton_aio.InferInput("x", [3, 2], "FP32")
    given.set_data_from_numpy(np.ones((3, 2), np.float32))
    async with triton_aio.InferenceServerClient(url.removeprefix("http://")) as client:
        for algorithm in (None, "gzip", "deflate"):
            result = await client.infer("of_FP32", [given], request_compression_algorithm=algorithm)
            assert np.array_equal(result.as_numpy("x_again"), np.ones((3, 2), np.float32))


def body(**changes: Any) -> dict[str, Any]:
    given = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    return {"inputs": [{**given, **changes}]}


HOSTILE = [
    ("no_such", body(), "is not served"),
    ("of_FP32/versions/7", body(), "has no version '7'"),
    ("of_FP32", {}, "missing required field inputs"),
    ("of_FP32", {"inputs": []}, "inputs.x is missing"),
    ("of_FP32", {"inputs": [*body()["inputs"]] * 2}, "more than once"),
    ("of_FP32", body(name="y"), "inputs.y is unknown"),
    ("of_FP32", body(datatype="FP64"), "has datatype FP64, the model takes FP32"),
    ("of_FP32", body(datatype="FP8"), "'FP8', which is not known"),
    ("of_FP32", body(shape=[1, 3]), "has 2 elements, its shape [1, 3] says 3"),
    ("of_FP32", body(shape=[2, 1]), "has shape [2, 1], the model takes [-1, 2]"),
    ("of_FP32", body(shape=[2**40, 2**40]), "elements"),
    ("of_FP32", body(shape=[-1, 2]), "not a list of at most 8 sizes"),
    ("of_FP32", body(shape=[1] * 9), "not a list of at most 8 sizes"),
    ("of_FP32", body(shape=[0, 2], data=[]), "is empty"),
    ("of_FP32", body(data=None), "is not a list"),
    ("of_FP32", body(data=[1, "2"]), "element 1 is not float32"),
    ("of_INT8", body(datatype="INT8", data=[1, 200]), "element 1 is not int8"),
    ("of_BOOL", body(datatype="BOOL", data=[1, True]), "element 0 is not bool"),
    ("of_FP32", body(parameters={"binary_data_size": 8}), "not a size within the 0 bytes"),
    ("of_FP32", {**body(), "outputs": [{"name": "z"}]}, "'z' is not an output"),
    ("of_FP32", {**body(), "parameters": {"speed": 9}}, "parameters.speed is unknown"),
    ("vectors", body(**ONE_TEXT, data=[5]), "element 0 is not a text"),
    ("tiny", body(name="text_input", datatype="BYTES", shape=[2], data=["a", "b"]), "has shape [2]"),
    (
        "tiny",
        body(**ONE_TEXT, data=["a"]) | {"parameters": {"model": "x"}},
        "model",
    ),
    ("tiny", body(**ONE_TEXT, data=["a"]) | {"parameters": {"top_p": 7}}, "top_p"),
]


@pytest.mark.parametrize(("model", "content", "message"), HOSTILE)
async def test_a_wrong_call_is_told_what_is_wrong_and_the_next_one_works(
    url: str, model: str, content: dict[str, Any], message: str
) -> None:
    async with httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        refused = await client.post(f"/v2/models/{model}/infer", json=content)
        assert 400 <= refused.status_code < 500, refused.text
        assert message in refused.json()["error"]
        good = await client.post("/v2/models/of_FP32/infer", json=body())
        assert good.json()["outputs"][0]["data"] == [1.0, 2.0]


BINARY = json.dumps(body(data=None, parameters={"binary_data_size": 8})).encode()
LENGTH = {"inference-header-content-length": str(len(BINARY))}
LYING_TEXTS = [b"", b"\x05\0\0\0a", b"\xff\xff\xff\xffab", b"\x01\0\0\0a\x01\0\0\0b", b"\x01\0\0\0\xff"]


@pytest.mark.parametrize(
    ("content", "headers", "message"),
    [
        (BINARY + b"1234567", LENGTH, "not a size within the 7 bytes"),
        (BINARY + b"123456789", LENGTH, "1 bytes after the JSON"),
        (BINARY, {"inference-header-content-length": "9" * 40}, "not a length within the body"),
        (BINARY, {"inference-header-content-length": "-1"}, "not a length within the body"),
        (BINARY.replace(b"[1, 2]", b"[3, 2]") + b"12345678", LENGTH, "has 8 bytes, its shape [3, 2] says 24"),
        (b"{", {}, "body"),
        (b"\x00\xff", {}, "body"),
        (BINARY, {"content-encoding": "br"}, "content-encoding 'br' is not read here"),
        (BINARY, {"content-encoding": "gzip"}, "the body is not gzip"),
        (gzip.compress(BINARY, mtime=0)[:-20], {"content-encoding": "gzip"}, "ends too early"),
        (gzip.compress(b"0" * 50_000_000, mtime=0), {"content-encoding": "gzip"}, "larger than max_request_bytes"),
    ],
)
async def test_bytes_that_lie_are_refused(url: str, content: bytes, headers: dict[str, str], message: str) -> None:
    async with httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        refused = await client.post("/v2/models/of_FP32/infer", content=content, headers=headers)
        assert 400 <= refused.status_code < 500, refused.text
        assert message in refused.json()["error"]


@pytest.mark.parametrize("raw", LYING_TEXTS)
async def test_texts_whose_lengths_lie_are_refused(url: str, raw: bytes) -> None:
    given = body(name="text_input", datatype="BYTES", shape=[1], parameters={"binary_data_size": len(raw)})
    del given["inputs"][0]["data"]
    head = json.dumps(given).encode()
    async with httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        headers = {"inference-header-content-length": str(len(head))}
        refused = await client.post("/v2/models/vectors/infer", content=head + raw, headers=headers)
    assert refused.status_code == 400, refused.text
    assert "inputs.text_input" in refused.json()["error"]


async def test_tritonclient_shows_the_message(url: str) -> None:
    wrong = [tensor("x", np.ones((1, 3), np.float32), "FP32")]
    with pytest.raises(InferenceServerException, match=r"has shape \[1, 3\], the model takes \[-1, 2\]"):
        await ask(url, lambda client: client.infer("of_FP32", wrong))


async def test_a_number_that_is_not_finite_is_refused_as_bytes_too(url: str) -> None:
    wrong = [tensor("x", np.array([[1, np.nan]], np.float32), "FP32")]
    with pytest.raises(InferenceServerException, match="not finite"):
        await ask(url, lambda client: client.infer("of_FP32", wrong))
