"""Paths and shapes that clients of vLLM, text-embeddings-inference, Cohere, Jina and SageMaker know."""

import base64
import math
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.gateway.http.aliases import ALIASES

MESSAGES = [{"role": "user", "content": "hello"}]
DOCUMENTS = ["abcdef", "a", "abc"]


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def refused(client: httpx.AsyncClient, path: str, **body: Any) -> str:
    """The field that an error names."""
    response = await client.post(path, json=body)
    assert response.status_code == 400, response.text
    field: str = response.json()["error"]["param"]
    assert field in response.json()["error"]["message"]
    return field


BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 1},
    "/v1/responses": {"input": "a", "max_output_tokens": 1, "seed": 1},
    "/v1/embeddings": {"input": "a"},
    "/v1/classify": {"input": "a"},
    "/v1/score": {"model": "judge", "text_1": "a", "text_2": "b"},
    "/v1/rerank": {"model": "judge", "query": "a", "documents": ["b"]},
    "/v1/tokenize": {"prompt": "a"},
    "/v1/detokenize": {"tokens": [5]},
    "/v2/chat": {"model": "tiny", "messages": MESSAGES, "max_tokens": 1, "seed": 1},
    "/v2/embed": {"model": "vectors", "texts": ["a"], "input_type": "search_query", "embedding_types": ["float"]},
}


def without_id(answer: Any) -> Any:
    if isinstance(answer, list):
        return [without_id(one) for one in answer]
    if not isinstance(answer, dict):
        return answer
    of_one = ("id", "created", "created_at", "completed_at")
    return {key: without_id(value) for key, value in answer.items() if key not in of_one}


@pytest.mark.parametrize("alias", ALIASES)
async def test_an_alias_answers_as_its_path_does(client: httpx.AsyncClient, alias: str) -> None:
    path = ALIASES[alias]
    if path in BODIES:
        body = {**BODIES[path], "seed": 1} if "completions" in path else BODIES[path]
        assert without_id(await post(client, alias, **body)) == without_id(await post(client, path, **body))
    else:
        assert (await client.get(alias)).json() == (await client.get(path)).json()


async def test_what_vllm_tells_of_itself_is_told(client: httpx.AsyncClient) -> None:
    assert (await client.get("/version")).json()["version"]
    assert (await client.get("/load")).json() == {"server_load": 0}
    models = (await client.get("/models")).json()
    assert [one["id"] for one in models["data"]] == ["tiny", "vectors", "colours", "judge"]
    assert models["models"][0] == {"modelName": "tiny", "modelUrl": "tiny"}


@pytest.mark.parametrize("keys", [{}, {"top_n": 0}, {"top_n": None}, {"max_chunks_per_doc": 3, "priority": 5}])
async def test_rerank_gives_all_documents_unless_fewer_are_wanted(client: httpx.AsyncClient, keys: Any) -> None:
    answer = await post(client, "/v2/rerank", model="judge", query="q", documents=DOCUMENTS, **keys)
    assert [one["index"] for one in answer["results"]] == [1, 2, 0]
    assert answer["id"]


async def test_a_document_is_a_text_or_an_object_with_one(client: httpx.AsyncClient) -> None:
    document = {"text": "abc", "title": "ti", "id": 7}
    body = {"model": "judge", "query": "q", "documents": [document, "a"]}
    plain = await post(client, "/rerank", **body)
    bare = await post(client, "/rerank", **body, return_documents=False)
    assert [set(one) for one in bare["results"]] == [{"index", "relevance_score"}] * 2
    assert [one["document"] for one in plain["results"]] == [{"text": "a"}, document]
    joined = await post(client, "/rerank", **{**body, "rank_fields": ["title", "text", "missing"]})
    one = await post(client, "/rerank", model="judge", query="q", documents="ti\nabc")
    assert joined["results"][1]["relevance_score"] == one["results"][0]["relevance_score"]
    assert joined["results"][1]["relevance_score"] < plain["results"][1]["relevance_score"]


async def test_documents_are_cut_to_as_many_tokens_as_asked(client: httpx.AsyncClient) -> None:
    body = {"model": "judge", "query": "q", "documents": ["zyxwvu" * 9, "zy"]}
    assert await refused(client, "/rerank", **body) == "documents[0]"
    cut = await post(client, "/rerank", **body, max_tokens_per_doc=2)
    assert cut["results"][0]["relevance_score"] == cut["results"][1]["relevance_score"]
    assert await refused(client, "/rerank", **body, max_tokens_per_doc=0) == "documents[0]"


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"documents": [{"title": "x"}]}, "documents[0]"),
        ({"documents": [{"text": ["x"]}]}, "documents[0].text"),
        ({"rank_fields": []}, "rank_fields"),
        ({"max_tokens_per_doc": -5}, "max_tokens_per_doc"),
        ({"top_n": -1}, "top_n"),
        ({"documents": []}, "documents"),
    ],
)
async def test_documents_that_cannot_be_read_are_refused(client: httpx.AsyncClient, keys: Any, field: str) -> None:
    assert await refused(client, "/v2/rerank", **{"model": "judge", "query": "q", "documents": ["a"], **keys}) == field


@pytest.mark.parametrize(
    ("first", "second"), [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
async def test_the_sides_of_a_score_have_several_names(client: httpx.AsyncClient, first: str, second: str) -> None:
    answer = await post(client, "/score", model="judge", **{first: "q", second: ["a", "abc"]})
    scores = [one["score"] for one in answer["data"]]
    assert scores[0] > scores[1]
    assert await refused(client, "/score", model="judge", **{first: "q"}) == "text_2"
    assert await refused(client, "/score", model="judge", **{first: "q", second: []}) == second
    assert await refused(client, "/score", model="judge", text_1="q", data_1="q", text_2="a") == "data_1"


async def test_text_embeddings_inference_gets_its_lists(client: httpx.AsyncClient) -> None:
    own = (await post(client, "/v1/embeddings", model="vectors", input=["ab", "c"]))["data"]
    raw = await post(client, "/embed", inputs=["ab", "c"], normalize=False)
    assert raw == [one["embedding"] for one in own]
    assert np.linalg.norm(await post(client, "/embed", inputs=["ab", "c"]), axis=1) == pytest.approx([1, 1])
    assert await post(client, "/embed", inputs="ab", normalize=False, truncate=True) == raw[:1]
    ranks = await post(client, "/rerank", model="judge", query="q", texts=DOCUMENTS, return_text=True)
    assert [(one["index"], one["text"]) for one in ranks] == [(1, "a"), (2, "abc"), (0, "abcdef")]
    assert "text" not in (await post(client, "/rerank", model="judge", query="q", texts=DOCUMENTS))[0]
    assert await refused(client, "/rerank", model="judge", query="q", texts=["a"], raw_scores=True) == "raw_scores"


async def test_cohere_gets_its_formats(client: httpx.AsyncClient) -> None:
    formats = ["float", "base64", "binary", "ubinary", "int8", "uint8"]
    body = {"model": "vectors", "texts": ["ab", "c"], "input_type": "search_query", "embedding_types": formats}
    answer = await post(client, "/v2/embed", **body)
    rows = np.array(answer["embeddings"]["float"], np.float32)
    assert np.frombuffer(base64.b64decode(answer["embeddings"]["base64"][1]), "<f4").tolist() == rows[1].tolist()
    int8 = np.array(answer["embeddings"]["int8"])
    assert np.abs(int8).max(axis=1).tolist() == [127, 127]
    assert np.abs(int8 / 127 * np.abs(rows).max(axis=1, keepdims=True) - rows).max() <= np.abs(rows).max() / 254 + 1e-6
    assert answer["embeddings"]["uint8"] == (int8 + 128).tolist()
    assert answer["embeddings"]["ubinary"] == np.packbits(rows > 0, axis=1).tolist()
    assert answer["embeddings"]["binary"] == [[one - 128 for one in row] for row in answer["embeddings"]["ubinary"]]
    assert (answer["texts"], answer["meta"]["api_version"]["version"]) == (["ab", "c"], "2")
    assert answer["meta"]["tokens"]["input_tokens"] == 5
    assert list((await post(client, "/v2/embed", texts=["ab"]))["embeddings"]) == ["float"]


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"texts": []}, "texts"),
        ({"embedding_types": ["int4"]}, "embedding_types[0]"),
        ({"truncate": "MIDDLE"}, "truncate"),
        ({"input_type": "nonexistent"}, "input_type"),
        ({"images": ["x"]}, "images"),
        ({"texts": ["abcdef" * 9], "truncate": "NONE"}, "texts[0]"),
        ({"output_dimension": 99}, "output_dimension"),
        ({"inputs": []}, "texts"),
        ({"texts": None, "inputs": []}, "inputs"),
        ({"texts": None}, "texts"),
        ({"texts": None, "inputs": [{"content": [{"type": "image_url"}]}]}, "inputs[0].content[0].type"),
        ({"texts": None, "inputs": [{"content": [{"type": "text"}]}]}, "inputs[0].content[0].text"),
    ],
)
async def test_what_cohere_can_and_we_cannot_is_refused(client: httpx.AsyncClient, keys: Any, field: str) -> None:
    assert await refused(client, "/v2/embed", **{"texts": ["a"], **keys}) == field


async def test_coheres_inputs_are_texts_in_parts(client: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]
    answer = await post(client, "/v2/embed", inputs=[{"content": parts}], images=[], output_dimension=2)
    assert answer["texts"] == ["ab\nc"]
    assert answer["embeddings"] == (await post(client, "/v2/embed", texts=["ab\nc"], output_dimension=2))["embeddings"]
    long = {"texts": ["abcdef" * 9], "truncate": "NONE"}
    assert 'send "truncate": "END"' in (await client.post("/v2/embed", json=long)).json()["message"]


async def test_cohere_cuts_long_texts_unless_told_otherwise(client: httpx.AsyncClient) -> None:
    assert (await post(client, "/v2/embed", texts=["abcdef" * 9]))["meta"]["tokens"]["input_tokens"] == 12
    assert (await post(client, "/v2/embed", texts=["abcdef"], max_tokens=3))["meta"]["tokens"]["input_tokens"] == 3


async def test_pooling_gives_what_the_model_makes(client: httpx.AsyncClient) -> None:
    vectors = await post(client, "/pooling", model="vectors", input=["ab", "c"], task="embed")
    own = (await post(client, "/v1/embeddings", model="vectors", input=["ab", "c"]))["data"]
    assert [one["data"] for one in vectors["data"]] == [one["embedding"] for one in own]
    assert vectors["data"][1]["object"] == "pooling"
    classes = await post(client, "/pooling", model="colours", input="ab")
    assert classes["data"][0]["data"] == pytest.approx(
        (await post(client, "/classify", model="colours", input="ab"))["data"][0]["probs"]
    )
    encoded = await post(client, "/pooling", model="colours", input="ab", encoding_format="base64")
    decoded = np.frombuffer(base64.b64decode(encoded["data"][0]["data"]), "<f4")
    assert decoded.tolist() == pytest.approx(classes["data"][0]["data"])
    for keys in ({}, {"task": "score"}, {"task": "classify"}):
        assert len((await post(client, "/pooling", model="judge", input="ab", **keys))["data"][0]["data"]) == 1
    assert await refused(client, "/pooling", model="colours", input="a", task="embed") == "task"
    assert await refused(client, "/pooling", model="colours", input="a", dimensions=1) == "dimensions"


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "f4"), ("float16", "f2"), ("bfloat16", "u2")])
@pytest.mark.parametrize(("endianness", "order"), [("little", "<"), ("big", ">"), ("native", "=")])
async def test_base64_comes_in_other_dtypes_and_orders(
    client: httpx.AsyncClient, dtype: str, kind: str, endianness: str, order: str
) -> None:
    body = {"model": "vectors", "input": "ab"}
    plain = (await post(client, "/v1/embeddings", **body))["data"][0]["embedding"]
    keys = {"encoding_format": "base64", "embed_dtype": dtype, "endianness": endianness}
    numbers = np.frombuffer(
        base64.b64decode((await post(client, "/v1/embeddings", **body, **keys))["data"][0]["embedding"]), order + kind
    )
    if dtype == "bfloat16":
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    assert numbers.tolist() == pytest.approx(plain, rel=0.01)
    assert await refused(client, "/v1/embeddings", **body, embed_dtype=dtype) == "embed_dtype"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (BODIES["/v1/chat/completions"], "/v1/chat/completions"),
        (BODIES["/v1/completions"], "/v1/completions"),
        ({"model": "vectors", "input": "a"}, "/v1/embeddings"),
        ({"model": "colours", "input": "a"}, "/v1/classify"),
        ({"model": "judge", "input": "a"}, "/pooling"),
        ({"model": "colours", "input": "a", "task": "classify"}, "/pooling"),
        (BODIES["/v1/rerank"], "/v1/rerank"),
        (BODIES["/v1/score"], "/v1/score"),
        ({"model": "colours", "text": "a"}, "/predict"),
    ],
)
async def test_invocations_calls_what_the_body_is_for(client: httpx.AsyncClient, body: Any, path: str) -> None:
    if "completions" in path:
        body = {**body, "seed": 1}
    assert without_id(await post(client, "/invocations", **body)) == without_id(await post(client, path, **body))
    assert await refused(client, "/invocations", nothing=1) == "body"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/classify", "/pooling", "/invocations"])
async def test_a_conversation_is_one_input_in_the_models_template(client: httpx.AsyncClient, path: str) -> None:
    model = "colours" if path == "/classify" else "vectors"
    chat = {"model": model, "messages": [{"role": "user", "content": "a"}]}
    tokens = (await post(client, "/tokenize", **chat, add_generation_prompt=False))["tokens"]
    plain = await post(client, path, model=model, input=[tokens])
    assert without_id(await post(client, path, **chat)) == without_id(plain)
    longer = await post(client, path, **chat, add_special_tokens=True, truncate=True)
    assert longer["usage"]["prompt_tokens"] >= plain["usage"]["prompt_tokens"]
    assert await refused(client, path, **chat, add_generation_prompt=True) == "input[0]"  # too long for twelve tokens
    assert await refused(client, path, **chat, input="a") == "messages"
    assert await refused(client, path, model=model, messages=[]) == "messages"


async def test_every_model_that_takes_text_tokenizes(client: httpx.AsyncClient) -> None:
    answers = [await post(client, "/tokenize", model=name, prompt="ab") for name in ("tiny", "vectors", "judge")]
    assert [one["tokens"] for one in answers] == [answers[0]["tokens"]] * 3
    assert (await post(client, "/detokenize", model="colours", tokens=answers[0]["tokens"]))["prompt"].endswith("ab")
    assert (await post(client, "/tokenize", prompt="ab"))["max_model_len"] == 512


async def test_long_texts_may_keep_their_ends(client: httpx.AsyncClient) -> None:
    longer = "b" * 60 + "abcdef"
    calls: list[tuple[str, dict[str, Any], Any]] = [
        ("/v2/embed", {"texts": [longer], "truncate": "START", "max_tokens": 4}, {"texts": ["def"]}),
        ("/v1/embeddings", {"input": longer, "truncate_prompt_tokens": 4, "truncation_side": "left"}, {"input": "def"}),
        ("/embed", {"inputs": longer, "truncate": True, "truncation_direction": "Left"}, {"inputs": longer[-11:]}),
    ]
    for path, cut, short in calls:
        answers = [await post(client, path, model="vectors", **body) for body in (cut, short)]
        first, second = [
            one if isinstance(one, list) else one["embeddings"] if "embeddings" in one else one["data"]
            for one in answers
        ]
        assert first == second
    rerank = {"model": "judge", "query": "q", "texts": ["a"], "truncation_direction": "left"}
    assert await refused(client, "/rerank", **rerank) == "truncation_direction"
    assert await refused(client, "/pooling", model="colours", input="a", truncation_side="left") == "truncation_side"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling"])
async def test_texts_may_go_without_special_tokens(client: httpx.AsyncClient, path: str) -> None:
    bare = [(await post(client, "/tokenize", prompt=text, add_special_tokens=False))["tokens"] for text in ("ab", "c")]
    body = {"model": "vectors", "add_special_tokens": False}
    expected = (await post(client, path, model="vectors", input=bare))["data"]
    assert (await post(client, path, **body, input=["ab", "c"]))["data"] == expected
    assert (await post(client, path, **body, input=bare))["data"] == expected
    pair = {"model": "colours", "input": "a", "text_pair": "b", "add_special_tokens": False}
    assert await refused(client, "/classify", **pair) == "add_special_tokens"


async def test_numbers_may_be_as_the_model_gives_them(client: httpx.AsyncClient) -> None:
    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp(value) for value in row]
        return [power / sum(powers) for power in powers]

    for keys in ({}, {"use_activation": True}):
        shown = (await post(client, "/classify", model="colours", input="ab", **keys))["data"][0]
        raw = (await post(client, "/classify", model="colours", input="ab", use_activation=False))["data"][0]
        assert softmax(raw["probs"]) == pytest.approx(shown["probs"])
        assert raw["label"] == shown["label"]
    body = {"model": "judge", "query": "q", "documents": ["a"]}
    shown = (await post(client, "/rerank", **body))["results"][0]["relevance_score"]
    raw = (await post(client, "/rerank", **body, use_activation=False))["results"][0]["relevance_score"]
    assert 1 / (1 + math.exp(-raw)) == pytest.approx(shown)
    sides = {"model": "judge", "text_1": "q", "text_2": "a", "use_activation": False}
    assert (await post(client, "/score", **sides))["data"][0]["score"] == raw
    pooled = (await post(client, "/pooling", model="colours", input="ab", use_activation=False))["data"][0]["data"]
    assert softmax(pooled) == pytest.approx(
        (await post(client, "/pooling", model="colours", input="ab"))["data"][0]["data"]
    )
    for path, given in (("/pooling", {"input": "a"}), ("/score", {"text_1": "a", "text_2": "b"})):
        assert await refused(client, path, model="vectors", use_activation=False, **given) == "use_activation"
