"""Embeddings, classes, scores, ranks and predictions over HTTP, with a scripted model behind the Gateway."""

import base64
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import UnavailableError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.preprocessing.arrays import to_array, to_tensor_data
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import Item, TensorSpec
from tests.fakes import BOS, NO_TLS, ScriptedBackend, byte_level_tokenizer, copy_item, save_model_dir, serving

TOKENS, LENGTHS = TensorSpec("int64", ("tokens",)), TensorSpec("int64", ("batch",))
TEXT_INPUTS = {"input_ids": TOKENS, "lengths": LENGTHS}
LABELS = ["red", "green", "blue"]


@dataclass
class Served:
    """The Gateway's URL, and the models behind it."""

    client: httpx.AsyncClient
    backend: ScriptedBackend

    async def post(self, route: str, **body: Any) -> httpx.Response:
        """POST a JSON body."""
        return await self.client.post(route, json=body)


def description(directory: Path, name: str, task: str, outputs: dict[str, TensorSpec], **more: Any) -> ModelDescription:
    values = {"inputs": TEXT_INPUTS, **more}
    return ModelDescription(name, task, str(directory), 12, 12, 300, [], 1_700_000_000, outputs=outputs, **values)


def answer(item: Item) -> Item:
    """Numbers that follow from the tokens: their count, their sum's last digit, the first one's last digit."""
    if "x" in item:
        x = to_array(item["x"])
        return {"y": to_tensor_data((x * np.float32(2)).astype(np.float32)), "n": to_tensor_data(x > 0)}
    token_ids = to_array(item["input_ids"])
    row = np.array([[len(token_ids), token_ids.sum() % 10, token_ids[0] % 10]], dtype=np.float32)
    return {"embedding": to_tensor_data(row), "logits": to_tensor_data(row)}


def score(item: Item) -> Item:
    """A cross-encoder that likes short pairs."""
    return {"logits": to_tensor_data(np.array([[2.0 - to_array(item["input_ids"]).size]], dtype=np.float32))}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    directory = save_model_dir(tmp_path)
    vector = {"embedding": TensorSpec("float32", ("batch", 3))}
    logits = {"logits": TensorSpec("float32", ("batch", 3))}
    tensors = {"x": TensorSpec("float32", ("batch", 2))}
    tensor_outputs = {"y": TensorSpec("float32", ("batch", 2)), "n": TensorSpec("bool", ("batch", 2))}
    backend = ScriptedBackend(directory, infer_script=answer)
    backend.extra_models = [
        description(directory, "vectors", "embed", vector, embedding_size=3),
        description(directory, "colours", "classify", logits, labels=LABELS),
        description(directory, "moods", "classify", logits, labels=LABELS, is_multi_label=True),
        description(directory, "module", "predict", tensor_outputs, inputs=tensors, has_tokenizer=False),
    ]
    async with (
        serving(build_http_app(DataPlane(backend, GatewayConfig()))) as url,
        httpx.AsyncClient(verify=NO_TLS, base_url=url) as client,
    ):
        yield Served(client, backend)


def floats(response: httpx.Response) -> NDArray[np.float32]:
    assert response.status_code == 200, response.text
    return np.array([one["embedding"] for one in response.json()["data"]], dtype=np.float32)


async def test_embeddings_come_in_the_order_of_the_inputs_whatever_their_kind(served: Served) -> None:
    first, second = served.backend.ids("ab"), served.backend.ids("c d")
    bos = byte_level_tokenizer().token_to_id(BOS)
    texts = floats(await served.post("/v1/embeddings", model="vectors", input=["ab", "c d"]))
    tokens = floats(await served.post("/v1/embeddings", model="vectors", input=[[bos, *first], [bos, *second]]))
    one = floats(await served.post("/v1/embeddings", model="vectors", input="c d"))
    assert texts[:, 0].tolist() == [1 + len(first), 1 + len(second)]
    assert np.array_equal(texts, tokens)
    assert np.array_equal(texts[1:], one)


async def test_base64_holds_the_same_numbers_and_usage_counts_the_tokens(served: Served) -> None:
    plain = await served.post("/v1/embeddings", input="ab")
    encoded = await served.post("/v1/embeddings", input="ab", encoding_format="base64")
    (entry,) = encoded.json()["data"]
    assert list(struct.unpack("<3f", base64.b64decode(entry["embedding"]))) == floats(plain)[0].tolist()
    assert plain.json()["usage"] == {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0}


async def test_dimensions_cuts_vectors(served: Served) -> None:
    whole = floats(await served.post("/v1/embeddings", input="ab"))
    assert np.array_equal(floats(await served.post("/v1/embeddings", input="ab", dimensions=2)), whole[:, :2])
    refused = await served.post("/v1/embeddings", input="ab", dimensions=4)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")


async def test_vectors_are_cut_to_the_sizes_that_their_model_was_trained_for(served: Served) -> None:
    models = served.backend.extra_models
    models[0] = replace(models[0], trained_sizes=[2])
    for size in (2, 3):
        assert floats(await served.post("/v1/embeddings", input="ab", dimensions=size)).shape == (1, size)
    refused = await served.post("/v1/embeddings", input="ab", dimensions=1)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")
    assert "use one of [2]" in refused.json()["error"]["message"]


async def test_a_text_that_is_too_long_is_refused_or_cut_as_asked(served: Served) -> None:
    refused = await served.post("/v1/embeddings", input=["ab", "abcdefghijklmnop" * 3])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "input[1]"
    assert "the model takes 12" in refused.json()["error"]["message"]
    for asked, length in (({"truncate": True}, 12), ({"truncate_prompt_tokens": 5}, 5)):
        cut = floats(await served.post("/v1/embeddings", input="abcdefghijklmnop" * 3, **asked))
        assert cut[0, 0] == length


async def test_a_token_without_a_row_in_the_embedding_is_refused_wherever_it_stands(served: Served) -> None:
    served.backend.extra_models = [replace(model, vocab_size=298) for model in served.backend.extra_models]
    pair = description(served.backend.source_dir, "pairs", "score", {"logits": LENGTHS})
    served.backend.extra_models.append(replace(pair, vocab_size=298))
    last = byte_level_tokenizer().id_to_token(298)
    for route, body, field in (
        ("/v1/embeddings", {"model": "vectors", "input": ["a", f"x {last}"]}, "input[1]"),
        ("/v1/classify", {"model": "colours", "input": last}, "input"),
        ("/predict", {"model": "moods", "text": last}, "text"),
        ("/v1/rerank", {"model": "pairs", "query": "a", "documents": ["b", last]}, "documents[1]"),
        ("/v1/score", {"model": "pairs", "text_1": last, "text_2": "b"}, "text_2[0]"),
    ):
        response = await served.post(route, **body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, field)
        assert f"token {last!r} (id 298) is not in 0..297" in response.json()["error"]["message"]
    assert served.backend.infer_requests == []


async def test_classes_come_with_probabilities_that_add_up(served: Served) -> None:
    body = (await served.post("/v1/classify", model="colours", input=["ab", "b"])).json()
    for entry in body["data"]:
        assert sum(entry["probs"]) == pytest.approx(1)
        assert entry["label"] == LABELS[int(np.argmax(entry["probs"]))]
        assert [one["score"] for one in entry["labels"]] == sorted(entry["probs"], reverse=True)
    top = (await served.post("/v1/classify", model="colours", input="ab", top_k=1)).json()
    assert len(top["data"][0]["labels"]) == 1


async def test_several_labels_may_hold_and_a_threshold_chooses(served: Served) -> None:
    body = (await served.post("/v1/classify", model="moods", input="ab", threshold=0.9)).json()
    (entry,) = body["data"]
    logits = floats(await served.post("/v1/embeddings", model="vectors", input="ab"))[0]
    expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert entry["probs"] == pytest.approx(expected.tolist())
    assert {one["label"] for one in entry["labels"]} == {
        label for label, probability in zip(LABELS, expected, strict=True) if probability >= 0.9
    }
    refused = await served.post("/v1/classify", model="colours", input="ab", threshold=0.9)
    assert refused.json()["error"]["param"] == "threshold"


async def test_predict_answers_one_text_or_a_list(served: Served) -> None:
    one = await served.post("/predict", model="colours", text="ab")
    many = await served.post("/predict", model="colours", text=["ab", "b"])
    assert set(one.json()) == {"label", "probability", "probabilities"}
    assert set(one.json()["probabilities"]) == set(LABELS)
    assert many.json()[0] == one.json()
    assert len(many.json()) == 2


async def test_a_cross_encoder_ranks_documents(served: Served) -> None:
    served.backend.infer_script = score
    outputs = {"logits": TensorSpec("float32", ("batch", 1))}
    served.backend.extra_models = [description(served.backend.source_dir, "judge", "score", outputs)]
    documents = ["abcd", "a", {"text": "abc"}]
    body = (await served.post("/v1/rerank", query="q", documents=documents, return_documents=True)).json()
    assert [one["document"]["text"] for one in body["results"]] == ["a", "abc", "abcd"]
    assert [one["index"] for one in body["results"]] == [1, 2, 0]
    top = (await served.post("/v1/rerank", query="q", documents=documents, top_n=1)).json()
    assert [one["index"] for one in top["results"]] == [1]
    scores = (await served.post("/v1/score", text_1="q", text_2=["a", "abcd"])).json()["data"]
    assert 0 < scores[1]["score"] < scores[0]["score"] < 1


async def test_an_embedder_scores_by_the_cosine(served: Served) -> None:
    body = (await served.post("/v1/score", model="vectors", text_1=["ab", "c"], text_2=["ab", "ab"])).json()
    assert body["data"][0]["score"] == pytest.approx(1)
    vectors = floats(await served.post("/v1/embeddings", input=["c", "ab"])).astype(np.float64)
    expected = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    assert body["data"][1]["score"] == pytest.approx(expected)


async def test_a_module_takes_and_gives_named_tensors(served: Served) -> None:
    flat = {"x": {"dtype": "float32", "shape": [2, 2], "data": [1, -2.5, 0, 4]}}
    nested = {"x": [[1, -2.5], [0, 4]]}
    bodies = [(await served.post("/predict", model="module", inputs=inputs)).json() for inputs in (flat, nested)]
    assert bodies[0] == bodies[1]
    assert bodies[0]["outputs"]["y"] == {"dtype": "float32", "shape": [2, 2], "data": [2.0, -5.0, 0.0, 8.0]}
    assert bodies[0]["outputs"]["n"]["data"] == [True, False, False, True]


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({}, "inputs"),
        ({"x": [[1, 2]], "z": [1]}, "inputs"),
        ({"x": []}, "inputs.x"),
        ({"x": [[]]}, "inputs.x"),
        ({"x": [1, 2]}, "inputs.x"),
        ({"x": 3}, "inputs.x"),
        ({"x": "text"}, "inputs.x"),
        ({"x": None}, "inputs.x"),
        ({"x": [[1, 2], [3]]}, "inputs.x"),
        ({"x": [[1, 2], 3]}, "inputs.x"),
        ({"x": [[1, [2]]]}, "inputs.x"),
        ({"x": [[1, "2"]]}, "inputs.x"),
        ({"x": [[1, True]]}, "inputs.x"),
        ({"x": [[1, 1e300]]}, "inputs.x"),
        ({"x": {"dtype": "float64", "shape": [1, 2], "data": [1, 2]}}, "inputs.x"),
        ({"x": {"dtype": "float32", "shape": [1, 2], "data": [1, 2, 3]}}, "inputs.x"),
        ({"x": {"dtype": "float32", "shape": [2**40, 2], "data": [1, 2]}}, "inputs.x"),
        ({"x": {"dtype": "float32", "shape": [-1, 2], "data": [1, 2]}}, "inputs.x.shape"),
        ({"x": {"dtype": "float32", "shape": [1.0, 2], "data": [1, 2]}}, "inputs.x.shape"),
        ({"x": {"dtype": "float32", "shape": [1, 2]}}, "inputs.x"),
        ({"x": {"dtype": "float32", "shape": [[1]], "data": [1]}}, "inputs.x.shape"),
        ({"x": {"shape": [1] * 40, "data": [1]}}, "inputs.x.shape"),
    ],
)
async def test_tensors_that_lie_are_refused_by_name_and_the_next_request_works(
    served: Served, inputs: dict[str, Any], field: str
) -> None:
    refused = await served.post("/predict", model="module", inputs=inputs)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field), refused.text
    assert served.backend.infer_requests == []
    assert (await served.post("/predict", model="module", inputs={"x": [[1, 2]]})).status_code == 200


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"input_ids": [1, 2, 3], "lengths": [2]}, "inputs.lengths"),
        ({"input_ids": [1, 2, 3], "lengths": [4, -1]}, "inputs.lengths"),
        ({"input_ids": [1, 2, 3], "lengths": [2**62, 2**62]}, "inputs.lengths"),
        ({"input_ids": [1], "lengths": [1, 0]}, "inputs.lengths"),
        ({"input_ids": [1], "lengths": [0, 1]}, "inputs.lengths"),
        ({"input_ids": [1] * 13, "lengths": [13]}, "inputs.lengths"),
        ({"input_ids": [1] * 32_769, "lengths": [1] * 32_769}, "inputs.lengths"),
        ({"input_ids": [1, 300], "lengths": [2]}, "inputs.input_ids"),
        ({"input_ids": [1, -1], "lengths": [2]}, "inputs.input_ids"),
    ],
)
async def test_packed_tokens_whose_lengths_lie_cannot_reach_other_requests(
    served: Served, inputs: dict[str, Any], field: str
) -> None:
    refused = await served.post("/predict", model="colours", inputs=inputs)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
    assert served.backend.infer_requests == []


@pytest.mark.parametrize("token_types", [[0, 2], [-1, 0]])
async def test_a_token_type_that_the_model_does_not_know_is_refused(served: Served, token_types: list[int]) -> None:
    outputs = {"logits": TensorSpec("float32", ("batch", 3))}
    inputs = {**TEXT_INPUTS, "token_type_ids": TOKENS}
    served.backend.extra_models = [description(served.backend.source_dir, "pairs", "classify", outputs, inputs=inputs)]
    tensors = {"input_ids": [1, 2], "lengths": [2], "token_type_ids": token_types}
    refused = await served.post("/predict", model="pairs", inputs=tensors)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "inputs.token_type_ids")
    assert served.backend.infer_requests == []
    tensors["token_type_ids"] = [0, 1]
    assert (await served.post("/predict", model="pairs", inputs=tensors)).status_code == 200


@pytest.mark.parametrize(
    "tensor",
    [
        [["CANARY", 1]],
        {"dtype": "CANARY", "shape": [1, 2], "data": [1, 2]},
        {"dtype": "float32", "shape": ["CANARY", 2], "data": [1, 2]},
        {"dtype": "float32", "shape": [1, 2], "data": "CANARY"},
        "CANARY",
    ],
)
async def test_a_refusal_of_a_tensor_does_not_quote_its_values(served: Served, tensor: Any) -> None:
    refused = await served.post("/predict", model="module", inputs={"x": tensor})
    assert refused.status_code == 400
    assert "CANARY" not in refused.text


async def test_a_number_that_rounds_to_infinity_is_too_large(served: Served) -> None:
    tensors = {"x": TensorSpec("bfloat16", ("batch", 2))}
    served.backend.infer_script = copy_item
    served.backend.extra_models = [description(served.backend.source_dir, "half", "predict", tensors, inputs=tensors)]
    refused = await served.post("/predict", model="half", inputs={"x": [[1, 3.4e38]]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "inputs.x")
    assert (await served.post("/predict", model="half", inputs={"x": [[1, 3.38e38]]})).status_code == 200


async def test_a_lone_label_is_not_certain_by_being_alone(served: Served) -> None:
    served.backend.infer_script = lambda _item: {"logits": to_tensor_data(np.array([[-5]], dtype=np.float32))}
    outputs = {"logits": TensorSpec("float32", ("batch", 1))}
    served.backend.extra_models = [description(served.backend.source_dir, "spam", "classify", outputs, labels=["spam"])]
    (entry,) = (await served.post("/v1/classify", input="a")).json()["data"]
    assert entry["probs"] == pytest.approx([1 / (1 + np.exp(5))])


async def test_probabilities_stand_by_output_even_where_two_labels_have_one_name(served: Served) -> None:
    logits = np.array([[3, 1, 2]], dtype=np.float32)
    served.backend.infer_script = lambda _item: {"logits": to_tensor_data(logits)}
    outputs = {"logits": TensorSpec("float32", ("batch", 3))}
    twins = description(served.backend.source_dir, "twins", "classify", outputs, labels=["a", "a", "b"])
    served.backend.extra_models = [twins]
    (entry,) = (await served.post("/v1/classify", input="a")).json()["data"]
    assert entry["probs"] == pytest.approx((np.exp(logits) / np.exp(logits).sum())[0].tolist())


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ""}, None),
        ("/v1/embeddings", {"input": [1, "a"]}, "input"),
        ("/v1/embeddings", {"input": [[1], [300]]}, "input[1]"),
        ("/v1/embeddings", {"input": [[]]}, "input[0]"),
        ("/v1/embeddings", {"input": [[1], [-1]]}, "input"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 13}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": ["a", "far too long " * 70_000]}, "input[1]"),
        ("/v1/classify", {"model": "colours", "input": "far too long " * 70_000}, "input"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "colour": "red"}, "colour"),
        ("/v1/embeddings", {"input": ["a"] * 16_385}, "input"),
        ("/v1/classify", {"input": "a"}, "model"),
        ("/v1/classify", {"input": "a", "model": "vectors"}, "model"),
        ("/v1/classify", {"input": "a", "model": "colours", "top_k": 0}, "top_k"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_2"),
        ("/v1/score", {"text_1": [], "text_2": ["a"]}, "text_1"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [3]}, None),
        ("/predict", {"model": "colours"}, "text"),
        ("/predict", {"model": "colours", "text": "a", "inputs": {}}, "text"),
        ("/predict", {"model": "module", "text": "a"}, "model"),
        ("/predict", {"model": "tiny", "text": "a"}, "model"),
    ],
)
async def test_a_wrong_body_is_refused_by_its_field(
    served: Served, route: str, body: dict[str, Any], field: str | None
) -> None:
    response = await served.post(route, **body)
    if body.get("input") == "":  # the tokenizer's special tokens are a text of their own
        assert response.status_code == 200
        return
    assert response.status_code in (400, 404), response.text
    if field is not None:
        assert response.json()["error"]["param"].startswith(field), response.text


async def test_an_error_of_the_model_reaches_the_client_with_its_status(served: Served) -> None:
    served.backend.error = UnavailableError("no copy", retry_after_s=2)
    response = await served.post("/v1/embeddings", input="a")
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")


async def test_an_output_that_is_not_finite_is_never_shown_as_a_number(served: Served) -> None:
    served.backend.infer_script = lambda _item: {
        "embedding": to_tensor_data(np.array([[np.nan, 1, 2]], dtype=np.float32)),
        "y": to_tensor_data(np.array([[np.inf, 1]], dtype=np.float32)),
    }
    assert (await served.post("/v1/embeddings", input="a")).status_code == 500
    outputs = (await served.post("/predict", model="module", inputs={"x": [[1, 2]]})).json()["outputs"]
    assert outputs["y"]["data"] == [None, 1.0]
