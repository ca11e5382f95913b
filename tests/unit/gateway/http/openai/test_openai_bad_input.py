"""Bodies of OpenAI's API that are refused, and how."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import AddedToken

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import RequestError
from serve_app.gateway.bodies.json_body import parse_json_object
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from tests.bad_requests import RAW_BODIES
from tests.fakes import (
    ScriptedBackend,
    byte_level_tokenizer,
    save_model_dir,
)
from tests.openai_calls import CHAT, COMPLETIONS, ask, chat_body, client_of, prompt_body


@pytest.mark.parametrize(("content", "field"), RAW_BODIES)
async def test_bytes_that_are_no_request_get_400_and_the_next_request_works(
    client: httpx.AsyncClient, content: bytes, field: str
) -> None:
    response = await client.post(COMPLETIONS, content=content)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == field
    assert error["message"].startswith(field)
    assert error["type"] == "invalid_request_error"
    await ask(client, COMPLETIONS, prompt_body())


def test_brackets_in_strings_are_not_nesting() -> None:
    content = {"prompt": "[" * 1000 + '\\"{' * 100, "lists": [[1]] * 100}
    assert parse_json_object(json.dumps(content).encode()) == content


def test_paired_surrogates_are_one_character() -> None:
    assert parse_json_object(b'{"a": "\\ud83d\\ude42"}') == {"a": "🙂"}


def test_depth_is_counted_at_the_limit() -> None:
    assert parse_json_object(b'{"a":' + b"[" * 63 + b"]" * 63 + b"}")
    with pytest.raises(RequestError, match="64 levels"):
        parse_json_object(b'{"a":' + b"[" * 64 + b"]" * 64 + b"}")


BAD_KEYS = [
    (COMPLETIONS, {"prompt": 5}, "prompt"),
    (COMPLETIONS, {"prompt": "", "add_special_tokens": False}, "prompt"),
    (COMPLETIONS, {"prompt": []}, "prompt"),
    (COMPLETIONS, {"prompt": [[]]}, "prompt"),
    (COMPLETIONS, {"prompt": ["a", ""], "add_special_tokens": False}, "prompt"),
    (COMPLETIONS, {"prompt": ["a", 1]}, "prompt"),
    (COMPLETIONS, {"prompt": [1, [1]]}, "prompt"),
    (COMPLETIONS, {"prompt": [1.5]}, "prompt[0]"),
    (COMPLETIONS, {"prompt": [True]}, "prompt[0]"),
    (COMPLETIONS, {"prompt": [{}]}, "prompt[0]"),
    (COMPLETIONS, {"prompt": [1, 299]}, "prompt"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt"),
    (COMPLETIONS, {"prompt": [[10**12]]}, "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 1025}, "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 9, "n": 128}, "n"),
    (COMPLETIONS, {"stop": ["x"] * 10_000}, "stop"),
    (COMPLETIONS, {"stop": [""]}, "stop"),
    (COMPLETIONS, {"stop": "x" * 1025}, "stop"),
    (COMPLETIONS, {"stop": 3}, "stop"),
    (COMPLETIONS, {"n": 100_000}, "n"),
    (COMPLETIONS, {"n": 0}, "n"),
    (COMPLETIONS, {"n": "2"}, "n"),
    (COMPLETIONS, {"n": 1.0}, "n"),
    (COMPLETIONS, {"n": True}, "n"),
    (COMPLETIONS, {"logprobs": -2}, "logprobs"),
    (COMPLETIONS, {"logprobs": 21}, "logprobs"),
    (COMPLETIONS, {"logprobs": True}, "logprobs"),
    (COMPLETIONS, {"prompt_logprobs": -2}, "prompt_logprobs"),
    (COMPLETIONS, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    (COMPLETIONS, {"temperature": -0.1}, "temperature"),
    (COMPLETIONS, {"temperature": 2.1}, "temperature"),
    (COMPLETIONS, {"temperature": "hot"}, "temperature"),
    (COMPLETIONS, {"top_p": -0.1}, "top_p"),
    (COMPLETIONS, {"top_p": 1.1}, "top_p"),
    (COMPLETIONS, {"top_k": -2}, "top_k"),
    (COMPLETIONS, {"min_p": 1.5}, "min_p"),
    (COMPLETIONS, {"presence_penalty": 2.5}, "presence_penalty"),
    (COMPLETIONS, {"frequency_penalty": -2.5}, "frequency_penalty"),
    (COMPLETIONS, {"repetition_penalty": 0}, "repetition_penalty"),
    (COMPLETIONS, {"max_tokens": -1}, "max_tokens"),
    (COMPLETIONS, {"max_tokens": 512}, "max_tokens"),
    (COMPLETIONS, {"min_tokens": 17}, "min_tokens"),
    (COMPLETIONS, {"seed": 2**63}, "seed"),
    (COMPLETIONS, {"seed": 1.5}, "seed"),
    (COMPLETIONS, {"logit_bias": {"x": 1}}, "logit_bias"),
    (COMPLETIONS, {"logit_bias": {"299": 1}}, "logit_bias"),
    (COMPLETIONS, {"logit_bias": {"5": 101}}, "logit_bias"),
    (COMPLETIONS, {"logit_bias": {"5": "a"}}, "logit_bias"),
    (COMPLETIONS, {"stop_token_ids": [299]}, "stop_token_ids"),
    (COMPLETIONS, {"stream_options": {"include_usage": True}}, "stream_options"),
    (COMPLETIONS, {"stream": True, "stream_options": {"typo": True}}, "stream_options.typo"),
    (COMPLETIONS, {"temprature": 1}, "temprature"),
    (COMPLETIONS, {"suffix": "x"}, "suffix"),
    (COMPLETIONS, {"best_of": 3, "n": 2}, "best_of"),
    (COMPLETIONS, {"messages": []}, "messages"),
    (COMPLETIONS, {"model": 3}, "model"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hi"}, "messages"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "a wizard", "content": "x"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "messages[0].content[0].type",
    ),
    (CHAT, {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
    (CHAT, {"messages": [{"role": "user", "content": "loop"}]}, "messages"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"logprobs": 3}, "logprobs"),
    (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    (CHAT, {"max_completion_tokens": 512}, "max_completion_tokens"),
    (CHAT, {"continue_final_message": True}, "continue_final_message"),
    (CHAT, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    (CHAT, {"chat_template": "{{ x }}"}, "chat_template"),
    (CHAT, {"tools": [{"type": "function"}]}, "tools[0].function"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    (CHAT, {"response_format": {"type": "xml"}}, "response_format.type"),
    (CHAT, {"functions": [{}]}, "functions"),
    (CHAT, {"audio": {"voice": "x"}}, "audio"),
    (CHAT, {"modalities": ["audio"]}, "modalities"),
    (CHAT, {"store": 1}, "store"),
    (CHAT, {"verbosity": "low"}, "verbosity"),
    (CHAT, {"thinking": {"type": "enabled"}}, "thinking"),
    (COMPLETIONS, {"reasoning_effort": "low"}, "reasoning_effort"),
    ("/v1/tokenize", {}, "prompt"),
    ("/v1/tokenize", {"prompt": "a", "messages": []}, "prompt"),
    ("/v1/detokenize", {"tokens": [299]}, "tokens"),
    ("/v1/detokenize", {"tokens": "a"}, "tokens"),
]


@pytest.mark.parametrize(("path", "keys", "field"), BAD_KEYS)
async def test_a_bad_value_is_refused_by_name_and_the_next_request_works(
    client: httpx.AsyncClient, path: str, keys: dict[str, Any], field: str
) -> None:
    base = {COMPLETIONS: prompt_body(), CHAT: chat_body()}.get(path, {"model": "tiny"})
    response = await client.post(path, json={**base, **keys})
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert error["param"] == field
    assert field in error["message"]
    await ask(client, COMPLETIONS, prompt_body())


async def test_an_unknown_model_gets_404(client: httpx.AsyncClient) -> None:
    response = await client.post(COMPLETIONS, json=prompt_body(model="nope"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert response.json()["error"]["param"] == "model"


@pytest.mark.parametrize(("path", "field", "num_tokens"), [(COMPLETIONS, "prompt", 601), (CHAT, "messages", 618)])
async def test_a_prompt_longer_than_the_context_is_told_both_numbers(
    client: httpx.AsyncClient, path: str, field: str, num_tokens: int
) -> None:
    text = "x" * 600
    body = prompt_body(prompt=text) if path == COMPLETIONS else chat_body(messages=[{"role": "user", "content": text}])
    error = (await client.post(path, json=body)).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", field)
    assert f"{num_tokens} tokens do not fit this model's context of 512 tokens" in error["message"]


async def test_a_token_without_a_row_in_the_embedding_is_refused_by_name(tmp_path: Path) -> None:
    core = byte_level_tokenizer()
    vocab_size = core.get_vocab_size()
    core.add_special_tokens([AddedToken("[PAD]", special=True)])
    backend = ScriptedBackend(save_model_dir(tmp_path, core), changes={"vocab_size": vocab_size})
    said = f"token '[PAD]' (id {vocab_size}) is not in 0..{vocab_size - 1}"
    long = "what is it for? " * 10 + "[PAD]"
    async with client_of(backend) as client:
        for path, body, field in (
            (CHAT, chat_body(messages=[{"role": "user", "content": "what is [PAD] for?"}]), "messages"),
            (CHAT, chat_body(messages=[{"role": "user", "content": long}]), "messages"),
            (CHAT, chat_body(chat_template_kwargs={"bos_token": "[PAD]"}), "messages"),
            (COMPLETIONS, prompt_body(prompt=["fine", long]), "prompt"),
            (COMPLETIONS, prompt_body(prompt=[64, vocab_size]), "prompt"),
            (COMPLETIONS, prompt_body(stop_token_ids=[vocab_size]), "stop_token_ids"),
        ):
            response = await client.post(path, json=body)
            assert (response.status_code, response.json()["error"]["param"]) == (400, field)
            assert said in response.json()["error"]["message"]
        tokens = (await ask(client, "/v1/tokenize", {"prompt": "[PAD]"}))["tokens"]
    assert tokens[-1] == vocab_size
    assert backend.requests == []


async def test_a_large_body_gets_413(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    for content in (b"x" * 10_000_000, pieces()):
        response = await client.post(COMPLETIONS, content=content)
        assert response.status_code == 413
        assert "max_request_bytes" in response.json()["error"]["message"]
    await ask(client, COMPLETIONS, prompt_body())


async def test_a_model_without_template_refuses_chat(tmp_path: Path) -> None:
    plain = ScriptedBackend(save_model_dir(tmp_path, chat_template=None))
    app = build_http_app(DataPlane(plain, GatewayConfig()))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client,
    ):
        error = (await client.post(CHAT, json=chat_body())).json()["error"]
        assert error["param"] == "model"
        assert "no chat template" in error["message"]
