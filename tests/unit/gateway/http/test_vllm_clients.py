"""What callers of vLLM get of models that embed, classify and score: its errors, its bytes, its tokenizer's files."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.preprocessing.float8 import FLOAT8_KINDS, from_float8
from tests.unit.gateway.http.test_known_apis import post, refused

BODY = {"model": "vectors", "input": ["ab", "c d", "e"]}


@pytest.mark.parametrize(
    ("model", "task", "start"),
    [
        ("vectors", "classify", "Unsupported task: 'classify'"),
        ("colours", "token_embed", "Unsupported task: 'token_embed'"),
        ("judge", "embed", "Unsupported task: 'embed'"),
        ("vectors", "plugin", "No IOProcessor plugin installed."),
    ],
)
async def test_a_task_of_another_model_is_refused_in_vllms_words(
    client: httpx.AsyncClient, model: str, task: str, start: str
) -> None:
    response = await client.post("/pooling", json={"model": model, "input": "a", "task": task})
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["code"], error["param"]) == ("BadRequestError", 400, "task")
    assert error["message"].startswith(start)


async def test_pooling_has_vllms_errors_for_every_fault(client: httpx.AsyncClient) -> None:
    unknown = await client.post("/pooling", json={"model": "nobody", "input": "a"})
    assert (unknown.status_code, unknown.json()["error"]["type"], unknown.json()["error"]["code"]) == (
        404,
        "NotFoundError",
        404,
    )
    assert (await client.get("/pooling")).json()["error"]["code"] == 405
    assert (await client.post("/pooling", json={"model": "vectors", "colour": 1})).json()["error"]["code"] == 400


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling", "/invocations"])
@pytest.mark.parametrize("endianness", ["little", "big"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"])
async def test_vectors_come_as_bytes_with_their_places_in_a_header(
    client: httpx.AsyncClient, path: str, dtype: str, endianness: str
) -> None:
    expected = [one["embedding"] for one in (await post(client, "/v1/embeddings", **BODY))["data"]]
    asked = {"encoding_format": "bytes", "embed_dtype": dtype, "endianness": endianness}
    response = await client.post(path, json={**BODY, **asked})
    assert response.headers["content-type"] == "application/octet-stream"
    metadata = json.loads(response.headers["metadata"])
    assert (metadata["model"], metadata["usage"]["prompt_tokens"]) == ("vectors", 9)
    pieces = [response.content[one["start"] : one["end"]] for one in metadata["data"]]
    assert b"".join(pieces) == response.content
    assert [numbers_of(piece, dtype, endianness) for piece in pieces] == [
        pytest.approx(row, rel=0.13) for row in expected
    ]
    assert [(one["index"], one["embed_dtype"], one["endianness"], one["shape"]) for one in metadata["data"]] == [
        (index, dtype, endianness, [3]) for index in range(3)
    ]


def numbers_of(piece: bytes, dtype: str, endianness: str) -> list[float]:
    if dtype in FLOAT8_KINDS:
        return list(from_float8(np.frombuffer(piece, np.uint8), dtype).tolist())
    order = "<" if endianness == "little" else ">"
    if dtype == "bfloat16":
        return list((np.frombuffer(piece, f"{order}u2").astype(np.uint32) << 16).view(np.float32).tolist())
    return list(
        np.frombuffer(piece, order + dtype.replace("float", "f").replace("32", "4").replace("16", "2")).tolist()
    )


async def test_bytes_only_is_the_numbers_alone(client: httpx.AsyncClient) -> None:
    expected = [one["embedding"] for one in (await post(client, "/v1/embeddings", **BODY))["data"]]
    response = await client.post("/v1/embeddings", json={**BODY, "encoding_format": "bytes_only"})
    assert "metadata" not in response.headers
    assert np.frombuffer(response.content, "<f4").reshape(3, 3).tolist() == expected


async def test_more_places_than_a_header_holds_are_refused(client: httpx.AsyncClient) -> None:
    many = {"model": "vectors", "input": ["a"] * 400}
    assert await refused(client, "/v1/embeddings", **many, encoding_format="bytes") == "encoding_format"
    whole = await client.post("/v1/embeddings", json={**many, "encoding_format": "bytes_only"})
    assert len(whole.content) == 400 * 3 * 4


async def test_a_tokenizers_files_are_told(client: httpx.AsyncClient) -> None:
    told = (await client.get("/tokenizer_info", params={"model": "vectors"})).json()
    assert (told["tokenizer_class"], told["bos_token"], told["eos_token"]) == ("PreTrainedTokenizerFast", "<s>", "</s>")
    assert "[assistant]" in told["chat_template"]
    assert (await client.get("/tokenizer_info")).json() == told  # of the one that generates
    response = await client.get("/tokenizer_info", params={"model": "nobody"})
    assert (response.status_code, response.json()["error"]["type"]) == (404, "NotFoundError")


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/embeddings", {"input": "a" * 60}, "Please reduce the length of the input prompt"),
        ("/v1/embeddings", {"input": "a" * 9_000}, "Please reduce the length of the input prompt"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 13}, "Please request a smaller truncation size."),
        ("/v1/embeddings", {"input": [-1]}, "out of vocabulary"),
        ("/v2/embed", {"texts": ["a"], "input_type": "poem"}, "Unsupported input_type"),
        (
            "/rerank",
            {"model": "judge", "query": "a", "documents": ["b"], "max_tokens_per_doc": -5},
            "non-negative integer",
        ),
    ],
)
async def test_refusals_have_the_words_by_which_callers_know_them(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], words: str
) -> None:
    response = await client.post(path, json={"model": "vectors", **body})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/classify", "/tokenize"])
async def test_a_message_is_not_both_gone_on_with_and_answered(client: httpx.AsyncClient, path: str) -> None:
    model = "colours" if path == "/classify" else "vectors"
    asked = {"messages": [{"role": "user", "content": "a"}], "continue_final_message": True}
    response = await client.post(path, json={"model": model, **asked, "add_generation_prompt": True})
    assert response.status_code == 400
    assert "both `continue_final_message` and `add_generation_prompt`" in response.json()["error"]["message"]


@pytest.mark.parametrize("side", ["left", "right"])
async def test_texts_are_filled_up_to_the_models_longest(client: httpx.AsyncClient, tmp_path: Path, side: str) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "</s>", "padding_side": side}))
    token_ids = (await post(client, "/tokenize", model="vectors", prompt="ab"))["tokens"]
    pads = (await post(client, "/tokenize", model="vectors", prompt="</s>" * 12))["tokens"][-(12 - len(token_ids)) :]
    whole = pads + token_ids if side == "left" else token_ids + pads
    padded = await post(client, "/v1/embeddings", model="vectors", input="ab", padding="max_length")
    assert padded["usage"]["prompt_tokens"] == 12
    assert padded["data"] == (await post(client, "/v1/embeddings", model="vectors", input=whole))["data"]
    plain = await post(client, "/v1/embeddings", model="vectors", input="ab", padding="do_not_pad")
    assert plain["usage"]["prompt_tokens"] == len(token_ids)
    many = {"model": "vectors", "input": ["a"] * (2**20 // 12 + 1), "padding": "max_length"}
    assert await refused(client, "/v1/embeddings", **many) == "padding"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "vectors", "padding": "max_length"}),  # its tokenizer has nothing to fill with
        ("/v1/embeddings", {"model": "vectors", "padding": "longest"}),
        ("/v1/classify", {"model": "colours", "padding": "max_length"}),
        ("/pooling", {"model": "judge", "padding": "max_length"}),
    ],
)
async def test_texts_that_cannot_be_filled_up_are_refused(client: httpx.AsyncClient, path: str, body: Any) -> None:
    assert await refused(client, path, input="a", **body) == "padding"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "vectors", "input": "a"}),
        ("/pooling", {"model": "colours", "input": "a"}),
        ("/v1/classify", {"model": "colours", "input": "a"}),
        ("/v1/score", {"model": "judge", "queries": "a", "documents": "b"}),
    ],
)
async def test_names_of_requests_and_salts_change_nothing(client: httpx.AsyncClient, path: str, body: Any) -> None:
    named = await post(client, path, **body, request_id="r-1", cache_salt="salt", user="somebody")
    assert named["data"] == (await post(client, path, **body))["data"]
