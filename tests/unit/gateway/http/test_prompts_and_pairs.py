"""Prompts that models name, second texts, and what numbers mean: what reaches the model, and what is answered."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.preprocessing.arrays import to_array, to_tensor_data
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import Item, TensorSpec
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving

TOKENS, LENGTHS = TensorSpec("int64", ("tokens",)), TensorSpec("int64", ("batch",))
TEXT_INPUTS = {"input_ids": TOKENS, "lengths": LENGTHS}
PROMPTS = {"query": "find: ", "passage": "text: ", "cluster": "group: ", "document": ""}


def model(directory: Path, name: str, task: str, size: int, **more: Any) -> ModelDescription:
    output = {"embedding" if task == "embed" else "logits": TensorSpec("float32", ("batch", size))}
    values = {"inputs": TEXT_INPUTS, "outputs": output, **more}
    return ModelDescription(name, task, str(directory), 90, 90, 400, [], 1, **values)


class Served:
    """A Gateway whose models give the length of what they get, and -0.25."""

    def __init__(self, client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
        self.client = client
        self.backend = backend
        self.tokenizer = Tokenizer.load(backend.source_dir)

    async def post(self, route: str, **body: Any) -> Any:
        """The answer's JSON."""
        response = await self.client.post(route, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    async def refusal(self, route: str, **body: Any) -> tuple[str, str]:
        """Field and message of an answer 400."""
        response = await self.client.post(route, json=body)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        return error["param"], error["message"]

    def seen(self) -> list[list[int]]:
        """The tokens of each entry since the last call."""
        items = [item for request in self.backend.infer_requests for item in request.items]
        self.backend.infer_requests.clear()
        return [to_array(item["input_ids"]).tolist() for item in items]

    def tokens(self, *texts: str) -> list[list[int]]:
        """Of texts."""
        return [self.tokenizer.encode_entry(text).token_ids for text in texts]


def answer(item: Item) -> Item:
    row = np.array([[to_array(item["input_ids"]).size, -0.25, 1]], dtype=np.float32)
    return {"embedding": to_tensor_data(row), "logits": to_tensor_data(row)}


def lone(_item: Item) -> Item:
    return {"logits": to_tensor_data(np.array([[-0.25]], dtype=np.float32))}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    backend = ScriptedBackend(save_model_dir(tmp_path), infer_script=answer)
    prompts = {"prompts": PROMPTS, "default_prompt_name": "cluster"}
    backend.extra_models = [
        model(tmp_path, "plain", "embed", 3, embedding_size=3),
        model(tmp_path, "prompted", "embed", 3, embedding_size=3, **prompts),
        model(tmp_path, "nli", "classify", 3, labels=["yes", "no", "maybe"]),
        model(tmp_path, "judge", "score", 1, prompts={"find": "find: "}, default_prompt_name="find"),
    ]
    async with (
        serving(build_http_app(DataPlane(backend, GatewayConfig()))) as url,
        httpx.AsyncClient(verify=NO_TLS, base_url=url) as client,
    ):
        yield Served(client, backend)


@pytest.mark.parametrize(
    ("asked", "prompt"),
    [
        ({}, "group: "),
        ({"prompt_name": "query"}, "find: "),
        ({"prompt_name": "document"}, ""),
        ({"input_type": "query"}, "find: "),
        ({"input_type": "search_query"}, "find: "),
        ({"input_type": "document"}, "text: "),
        ({"input_type": "passage"}, "text: "),
        ({"input_type": "cluster"}, "group: "),
    ],
)
async def test_a_prompt_goes_before_each_text(served: Served, asked: dict[str, str], prompt: str) -> None:
    await served.post("/v1/embeddings", model="prompted", input=["ab", "c"], **asked)
    assert served.seen() == served.tokens(f"{prompt}ab", f"{prompt}c")


async def test_token_ids_and_models_without_prompts_get_none(served: Served) -> None:
    await served.post("/v1/embeddings", model="prompted", input=[[5, 6]])
    await served.post("/v1/embeddings", model="plain", input="ab", input_type="query")
    assert served.seen() == [[5, 6], *served.tokens("ab")]


@pytest.mark.parametrize(
    ("name", "asked", "field", "told"),
    [
        ("prompted", {"prompt_name": "other"}, "prompt_name", "use one of ['cluster', 'document', 'passage', 'query']"),
        ("prompted", {"input_type": "other"}, "input_type", "use one of ['cluster', 'document', 'passage', 'query']"),
        ("plain", {"prompt_name": "query"}, "prompt_name", "it has none"),
        ("prompted", {"input_type": "query", "prompt_name": "query"}, "input_type", "send one of them"),
        ("prompted", {"input": [[5]], "prompt_name": "query"}, "prompt_name", "input holds token ids"),
    ],
)
async def test_a_prompt_that_cannot_be_is_refused(
    served: Served, name: str, asked: dict[str, Any], field: str, told: str
) -> None:
    where, message = await served.refusal("/v1/embeddings", **{"model": name, "input": "ab", **asked})
    assert where == field
    assert told in message


async def test_similarity_of_embeddings_uses_prompts_as_well(served: Served) -> None:
    await served.post("/v1/score", model="prompted", text_1="a", text_2="b", prompt_name="query")
    assert served.seen() == served.tokens("find: a", "find: b")
    await served.post("/v1/rerank", model="prompted", query="a", documents=["b", "c"])
    assert served.seen() == served.tokens("find: a", "text: b", "text: c")


async def test_a_cross_encoders_prompt_goes_before_the_first_text(served: Served) -> None:
    served.backend.infer_script = lone
    expected = [served.tokenizer.encode_entry("find: a", "b").token_ids]
    await served.post("/v1/score", model="judge", text_1="a", text_2="b")
    assert served.seen() == expected
    await served.post("/v1/rerank", model="judge", query="a", documents=["b"])
    assert served.seen() == expected


async def test_lengths_of_prompts_reach_a_model_that_leaves_them_out(served: Served) -> None:
    inputs = {**TEXT_INPUTS, "prompt_lengths": LENGTHS}
    directory = Path(served.backend.source_dir)
    served.backend.extra_models = [
        model(directory, "m", "embed", 3, embedding_size=3, prompts=PROMPTS, inputs=inputs),
    ]
    await served.post("/v1/embeddings", model="m", input="ab", prompt_name="query")
    await served.post("/v1/embeddings", model="m", input="ab")
    items = [item for request in served.backend.infer_requests for item in request.items]
    (with_special,) = served.tokens("find: ")
    assert [to_array(item["prompt_lengths"]).tolist() for item in items] == [[len(with_special)], [0]]
    for wrong in ([2], [-1]):
        tensors = {"input_ids": [5, 6], "lengths": [2], "prompt_lengths": wrong}
        assert (await served.refusal("/predict", model="m", inputs=tensors))[0] == "inputs.prompt_lengths"


async def test_pairs_are_classified(served: Served) -> None:
    pairs = [("ab", "c"), ("d", "e f")]
    expected = [served.tokenizer.encode_entry(*pair).token_ids for pair in pairs]
    first, second = (list(texts) for texts in zip(*pairs, strict=True))
    labels = await served.post("/v1/classify", model="nli", input=first, text_pair=second)
    assert served.seen() == expected
    predictions = await served.post("/predict", model="nli", text=first, text_pair=second)
    assert served.seen() == expected
    assert [one["label"] for one in predictions] == [one["label"] for one in labels["data"]]
    assert await served.post("/predict", model="nli", text="ab", text_pair="c") == predictions[0]
    assert served.seen() == expected[:1]
    instances = [{"text": one, "text_pair": two} for one, two in pairs]
    answered = await served.post("/v1/models/nli:predict", instances=instances)
    assert (served.seen(), answered["predictions"]) == (expected, predictions)


@pytest.mark.parametrize(
    "body",
    [
        {"text": ["a", "b"], "text_pair": ["c"]},
        {"text": "a", "text_pair": []},
        {"inputs": {}, "text_pair": "c"},
    ],
)
async def test_pairs_that_do_not_match_are_refused(served: Served, body: dict[str, Any]) -> None:
    assert (await served.refusal("/predict", model="nli", **body))[0] == "text_pair"
    assert served.seen() == []


@pytest.mark.parametrize(
    ("activation", "expected"), [("sigmoid", 1 / (1 + np.exp(0.25))), ("tanh", np.tanh(-0.25)), ("identity", -0.25)]
)
async def test_a_lone_number_is_shown_as_the_files_say_on_every_route(
    served: Served, activation: str, expected: float
) -> None:
    served.backend.infer_script = lone
    directory = Path(served.backend.source_dir)
    served.backend.extra_models = [
        model(directory, "judge", "score", 1, score_activation=activation),
        model(directory, "sure", "classify", 1, labels=["it"], score_activation=activation),
    ]
    scores = await served.post("/v1/score", model="judge", text_1="a", text_2="b")
    ranks = await served.post("/v1/rerank", model="judge", query="a", documents=["b"])
    classes = await served.post("/v1/classify", model="sure", input="a")
    predicted = await served.post("/predict", model="sure", text="a")
    numbers = [scores["data"][0]["score"], ranks["results"][0]["relevance_score"]]
    numbers += [classes["data"][0]["probs"][0], predicted["probabilities"]["it"]]
    assert numbers == pytest.approx([expected] * 4)


async def test_a_regression_of_several_numbers_is_shown_as_it_is(served: Served) -> None:
    directory = Path(served.backend.source_dir)
    served.backend.extra_models = [
        model(directory, "r", "classify", 3, labels=["a", "b", "c"], score_activation="identity")
    ]
    predicted = await served.post("/predict", model="r", text="a")
    assert predicted["probabilities"] == {"a": 2.0, "b": -0.25, "c": 1.0}


@pytest.mark.parametrize(
    ("name", "expected"), [("dot", 2 * 3 + 0.0625 + 1), ("euclidean", -1.0), ("manhattan", -1.0), ("cosine", None)]
)
async def test_embeddings_are_compared_as_the_files_say(served: Served, name: str, expected: float | None) -> None:
    directory = Path(served.backend.source_dir)
    served.backend.extra_models = [model(directory, "m", "embed", 3, embedding_size=3, similarity=name)]
    scores = await served.post("/v1/score", model="m", text_1="a", text_2="bc")  # [2, -0.25, 1] and [3, -0.25, 1]
    if expected is None:
        expected = (2 * 3 + 0.0625 + 1) / np.sqrt((4 + 1.0625) * (9 + 1.0625))
    assert scores["data"][0]["score"] == pytest.approx(expected)
