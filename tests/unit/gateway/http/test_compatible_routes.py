"""What callers of TorchServe, TF Serving and KServe v1 send, and what they get."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.preprocessing.arrays import to_array, to_tensor_data
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import Item, TensorSpec
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving
from tests.unit.gateway.http.test_inference_routes import LABELS, TEXT_INPUTS, answer, score


def twice(item: Item) -> Item:
    """Doubles rows; sums them to one number each; answers texts by rule."""
    if "input_ids" in item:
        return answer(item)
    x = to_array(item["x"])
    if "y" not in item:
        return {"double": to_tensor_data(x * np.float32(2))}
    return {"double": to_tensor_data(x * np.float32(2)), "sum": to_tensor_data(x.sum(axis=1) + to_array(item["y"]))}


@pytest.fixture
def backend(tmp_path: Path) -> ScriptedBackend:
    directory = save_model_dir(tmp_path)
    backend = ScriptedBackend(directory, infer_script=twice)
    rows, single = TensorSpec("float32", ("batch", 2)), TensorSpec("float32", ("batch",))

    def described(name: str, task: str, **more: Any) -> ModelDescription:
        return ModelDescription(name, task, str(directory), 64, 64, 300, [], 1, **more)

    three = TensorSpec("float32", ("batch", 3))
    backend.extra_models = [
        described("team/colours", "classify", inputs=TEXT_INPUTS, outputs={"logits": three}, labels=LABELS),
        described("vectors", "embed", inputs=TEXT_INPUTS, outputs={"embedding": three}, embedding_size=3),
        described("one", "predict", inputs={"x": rows}, outputs={"double": rows}, has_tokenizer=False),
        described(
            "two",
            "predict",
            inputs={"x": rows, "y": single},
            outputs={"double": rows, "sum": single},
            has_tokenizer=False,
        ),
    ]
    return backend


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    plane = DataPlane(backend, GatewayConfig())
    async with serving(build_http_app(plane)) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        yield client


async def get(client: httpx.AsyncClient, path: str) -> Any:
    response = await client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


async def post(client: httpx.AsyncClient, path: str, **options: Any) -> Any:
    response = await client.post(path, **options)
    assert response.status_code == 200, response.text
    return response.json()


async def test_torchserve_sees_health_and_models(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    assert await get(client, "/ping") == {"status": "Healthy"}
    names = [one["modelName"] for one in (await get(client, "/models"))["models"]]
    assert names == ["tiny", "team/colours", "vectors", "one", "two"]
    backend.is_healthy = False
    assert (await client.get("/ping")).status_code == 503


async def test_torchserve_takes_a_text_or_json(client: httpx.AsyncClient) -> None:
    classes = (await post(client, "/predict", json={"model": "team/colours", "text": "ab"}))["probabilities"]
    plain = await post(client, "/predictions/team/colours", content=b"ab")
    assert plain == classes
    assert await post(client, "/predictions/team/colours/1.0", json={"data": "ab"}) == classes
    assert await post(client, "/predictions/team/colours", json="ab") == classes
    assert await post(client, "/predictions/team/colours", json=["ab", "ab"]) == [classes, classes]
    assert await post(client, "/predictions/team/colours", json={"instances": ["ab"]}) == [classes]
    put = await client.put("/predictions/team/colours", content=b"ab")
    assert put.json() == classes
    assert await post(client, "/predictions/one", json={"x": [1, 2]}) == [2.0, 4.0]


async def test_tf_serving_rows_become_rows(client: httpx.AsyncClient) -> None:
    body = {"instances": [[1, 2], [3, 4], [5, 6]], "signature_name": "serving_default"}
    assert await post(client, "/v1/models/one:predict", json=body) == {"predictions": [[2, 4], [6, 8], [10, 12]]}
    named = {"instances": [{"x": [1, 2], "y": 10}, {"x": [3, 4], "y": 20}]}
    assert (await post(client, "/v1/models/two:predict", json=named))["predictions"] == [
        {"double": [2, 4], "sum": 13},
        {"double": [6, 8], "sum": 27},
    ]


async def test_kserve_v1_texts_become_predictions(client: httpx.AsyncClient) -> None:
    answers = await post(client, "/v1/models/team/colours:predict", json={"instances": ["ab", {"text": "c"}]})
    expected = await post(client, "/predict", json={"model": "team/colours", "text": ["ab", "c"]})
    assert answers["predictions"] == expected
    vectors = await post(client, "/v1/models/vectors:predict", json={"instances": ["ab", "c"]})
    plain = (await post(client, "/v1/embeddings", json={"model": "vectors", "input": ["ab", "c"]}))["data"]
    assert vectors["predictions"] == [one["embedding"] for one in plain]
    body = {"instances": ["hello", "you"], "parameters": {"max_tokens": 4}}
    texts = (await post(client, "/v1/models/tiny:predict", json=body))["predictions"]
    choices = await post(client, "/v1/completions", json={"model": "tiny", "prompt": ["hello", "you"], "max_tokens": 4})
    assert texts == [one["text"] for one in choices["choices"]]


async def test_a_cross_encoder_scores_pairs(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    logits = {"logits": TensorSpec("float32", ("batch", 1))}
    cross = ModelDescription("cross", "score", str(backend.source_dir), 64, 64, 300, [], 1, inputs=TEXT_INPUTS)
    cross.outputs.update(logits)
    backend.extra_models.append(cross)
    backend.infer_script = score
    body = {"instances": [{"text_1": "a", "text_2": "b"}, {"text_1": "a", "text_2": "bbbb"}]}
    first, second = (await post(client, "/v1/models/cross:predict", json=body))["predictions"]
    assert first > second


async def test_one_answer_serves_openai_kserve_and_tf_serving(client: httpx.AsyncClient) -> None:
    state = await get(client, "/v1/models/team/colours")
    assert (state["id"], state["name"], state["object"]) == ("team/colours", "team/colours", "model")
    assert state["model_version_status"] == [{"version": "1", "state": "LOADING"}]  # no copy of it has told its state
    tiny = await get(client, "/v1/models/tiny")
    assert (tiny["ready"], tiny["model_version_status"][0]["state"]) == (True, "AVAILABLE")
    async with openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as caller:
        assert (await caller.models.retrieve("tiny")).id == "tiny"


@pytest.mark.parametrize(
    ("path", "options", "field"),
    [
        ("/v1/models/one:predict", {"json": {}}, "instances"),
        ("/v1/models/one:predict", {"json": {"instances": []}}, "instances"),
        ("/v1/models/one:predict", {"json": {"instances": [[1, 2], [3]]}}, "inputs.x"),
        ("/v1/models/two:predict", {"json": {"instances": [{"x": [1, 2]}]}}, "instances[0]"),
        ("/v1/models/one:predict", {"json": {"inputs": [[1, 2]]}}, "inputs"),
        ("/v1/models/one:predict", {"json": {"instances": [[1, 2]], "signature_name": "other"}}, "signature_name"),
        ("/v1/models/one:predict", {"json": {"instances": [[1, 2]], "parameters": 5}}, "parameters"),
        ("/v1/models/vectors:predict", {"json": {"instances": [5]}}, "instances[0]"),
        ("/v1/models/vectors:predict", {"json": {"instances": [{"text": "a", "more": 1}]}}, "instances[0]"),
        ("/v1/models/tiny:predict", {"json": {"instances": ["a"], "parameters": {"n": 2}}}, "n"),
        ("/v1/models/tiny:predict", {"json": {"instances": ["a"], "parameters": {"speed": 2}}}, "speed"),
        ("/predictions/vectors", {"content": b"\xff"}, "body"),
        ("/predictions/vectors", {"content": b"[1", "headers": {"content-type": "application/json"}}, "body"),
        *(
            ("/predictions/vectors", {"content": content, "headers": {"content-type": "application/json"}}, "body")
            for content in (b'["a"], "x": 1', b'"a"}, {"b": "c"', b'"a" "b"', b"1]", b" ")
        ),
        ("/predictions/vectors", {"files": {"data": b"text"}}, "body"),
    ],
)
async def test_what_is_wrong_is_told_by_its_field(
    client: httpx.AsyncClient, path: str, options: dict[str, Any], field: str
) -> None:
    refused = await client.post(path, **options)
    assert 400 <= refused.status_code < 500, refused.text
    assert refused.json()["error"]["param"] == field
    assert (await client.post("/v1/models/one:predict", json={"instances": [[1, 2]]})).status_code == 200


@pytest.mark.parametrize("path", ["/predictions/no-such", "/v1/models/no-such:predict"])
async def test_a_model_that_is_not_served_is_404(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.post(path, json={"instances": ["a"]})).status_code == 404
