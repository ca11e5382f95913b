"""Bodies of OpenAI's API: what is taken, what is refused and how, what the answers hold."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from tokenizers import AddedToken, processors

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import RequestError
from serve_app.gateway.bodies.json_body import parse_json_object
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.types.generation import SamplingDefaults
from tests.bad_requests import RAW_BODIES
from tests.fakes import (
    BOS,
    END_OF_TURN,
    EOS,
    ScriptedBackend,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    save_model_dir,
    say,
)

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture
def backend(model_dir: Path) -> ScriptedBackend:
    return ScriptedBackend(model_dir)


@asynccontextmanager
async def client_of(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    app = build_http_app(DataPlane(backend, GatewayConfig(max_request_bytes=1_000_000, chat_template_timeout_s=0.5)))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client


@pytest_asyncio.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend) as client:
        yield client


def prompt_body(**keys: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "hello", **keys}


def chat_body(**keys: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], **keys}


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def events(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = await client.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


# Bad input


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
    (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
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
    (CHAT, {"tools": [{"type": "function"}]}, "tools"),
    (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
    (CHAT, {"functions": [{}]}, "functions"),
    (CHAT, {"audio": {"voice": "x"}}, "audio"),
    (CHAT, {"modalities": ["audio"]}, "modalities"),
    (CHAT, {"store": 1}, "store"),
    (CHAT, {"verbosity": "low"}, "verbosity"),
    (CHAT, {"thinking": {"type": "enabled"}}, "thinking"),
    (COMPLETIONS, {"reasoning_effort": "low"}, "reasoning_effort"),
    (CHAT, {"echo": True}, "echo"),
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


# What is taken


NEUTRAL = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "parallel_tool_calls": True,
    "tools": None,
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "functions": [],
    "audio": None,
    "suffix": None,
    "best_of": 1,
    "stop": None,
    "logit_bias": None,
    "seed": None,
    "stream_options": None,
    "temperature": None,
}


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, prompt_body()), (CHAT, chat_body())])
async def test_keys_that_ask_for_nothing_are_taken(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    await ask(client, path, {**body, **NEUTRAL})


async def test_parameters_reach_the_router(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    await ask(
        client,
        COMPLETIONS,
        prompt_body(
            max_tokens=5,
            min_tokens=2,
            temperature=0,
            top_k=-1,
            top_p=0.5,
            min_p=0.1,
            repetition_penalty=1.5,
            presence_penalty=-2,
            frequency_penalty=2,
            logit_bias={"7": -100},
            stop_token_ids=[9],
            ignore_eos=True,
            seed=-(2**63),
            n=2,
            logprobs=0,
        ),
    )
    request = backend.requests[-1]
    params = request.params
    assert (params.max_tokens, params.min_tokens, params.temperature, params.top_k) == (5, 2, 0, 0)
    assert (params.top_p, params.min_p, params.repetition_penalty) == (0.5, 0.1, 1.5)
    assert (params.presence_penalty, params.frequency_penalty, params.logit_bias) == (-2, 2, {7: -100})
    assert (params.stop_token_ids, params.ignore_eos, params.seed) == ((9,), True, -(2**63))
    assert (params.num_logprobs, params.num_prompt_logprobs, request.num_choices) == (0, None, 2)
    assert request.queue_timeout_s == 30


async def test_defaults_are_openais(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    await ask(client, COMPLETIONS, prompt_body())
    await ask(client, CHAT, chat_body())
    completion, chat = backend.requests
    assert completion.params.max_tokens == 16
    assert chat.params.max_tokens == 512 - len(chat.prompt_token_ids)
    assert completion.params.temperature == 1
    assert completion.params.seed != chat.params.seed
    assert completion.request_id != chat.request_id


async def test_what_a_request_does_not_say_is_as_the_checkpoint_has_it(model_dir: Path) -> None:
    sampling = SamplingDefaults(0.6, 20, 0.95, 0.05, 1.05, max_tokens=3)
    backend = ScriptedBackend(model_dir, changes={"sampling": sampling})
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    own = {"temperature": 0, "top_k": -1, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
    async with client_of(backend) as client:
        for path, body, max_tokens in ((CHAT, chat_body(), 3), (COMPLETIONS, prompt_body(), 16)):
            await ask(client, path, body)
            params = backend.requests[-1].params
            assert [getattr(params, name) for name in names] == [0.6, 20, 0.95, 0.05, 1.05]
            assert params.max_tokens == max_tokens
            await ask(client, path, {**body, **own, "max_tokens": 5})
            params = backend.requests[-1].params
            assert [getattr(params, name) for name in names] == [0, 0, 1, 0, 1]
            assert params.max_tokens == 5


async def test_each_prompt_without_a_seed_draws_its_own(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    await ask(client, COMPLETIONS, prompt_body(prompt=["a", "a"]))
    assert backend.requests[0].params.seed != backend.requests[1].params.seed
    await ask(client, COMPLETIONS, prompt_body(prompt=["a", "a"], seed=5))
    assert [request.params.seed for request in backend.requests[2:]] == [5, 5]


@pytest.mark.parametrize("prompt", ["hi", ["hi"], [1, 2], [[1, 2]]])
async def test_prompts_come_in_four_shapes(client: httpx.AsyncClient, prompt: Any) -> None:
    answer = await ask(client, COMPLETIONS, prompt_body(prompt=prompt, max_tokens=2))
    assert [choice["index"] for choice in answer["choices"]] == [0]


async def test_choices_are_numbered_prompt_by_prompt(client: httpx.AsyncClient) -> None:
    answer = await ask(client, COMPLETIONS, prompt_body(prompt=[[64, 65], [66]], n=2, max_tokens=3))
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "aba"),
        (1, "bab"),
        (2, "ccc"),
        (3, "ccc"),
    ]
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 12,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_tokens_that_were_in_the_cache_are_counted(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.num_cached_tokens = 4
    two = prompt_body(prompt=[[64] * 6, [65] * 7], n=2, max_tokens=2)
    answer = await ask(client, COMPLETIONS, two)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}
    body = chat_body(max_tokens=2, stream=True, stream_options={"include_usage": True})
    assert (await events(client, CHAT, body))[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


async def test_more_prompts_than_run_at_once_are_all_answered(client: httpx.AsyncClient) -> None:
    prompts = [[64 + index % 20] for index in range(200)]
    answer = await ask(client, COMPLETIONS, prompt_body(prompt=prompts, max_tokens=1, return_token_ids=True))
    assert [choice["token_ids"] for choice in answer["choices"]] == prompts


async def test_bos_is_added_once(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    for keys in ({"prompt": "hi"}, {"prompt": f"{BOS}hi"}, {"prompt": f"{BOS}hi", "add_special_tokens": False}):
        await ask(client, COMPLETIONS, prompt_body(**keys))
    for is_added in (None, True):  # the chat template writes BOS itself
        await ask(client, CHAT, chat_body(add_special_tokens=is_added))
    bos = backend.requests[0].prompt_token_ids[0]
    assert len({tuple(request.prompt_token_ids) for request in backend.requests[:3]}) == 1
    assert all(request.prompt_token_ids.count(bos) == 1 for request in backend.requests)


async def test_chat_messages_become_text(client: httpx.AsyncClient) -> None:
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "tool", "content": "d", "tool_call_id": "1"},
    ]
    tokens = (await ask(client, "/v1/tokenize", {"model": "tiny", "messages": messages}))["tokens"]
    text = (await ask(client, "/v1/detokenize", {"model": "tiny", "tokens": tokens}))["prompt"]
    assert text == (f"{BOS}[system]be kind<|end|>[user]a\nb<|end|>[assistant]c<|end|>[tool]d<|end|>[assistant]")


async def test_a_final_message_can_be_continued(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    messages = [{"role": "assistant", "content": "Well "}]
    await ask(client, CHAT, chat_body(messages=messages, continue_final_message=True, add_generation_prompt=False))
    assert backend.requests[-1].prompt_token_ids == backend.ids(f"{BOS}[assistant]Well ")


async def test_a_prompt_can_be_cut_to_its_end(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    await ask(client, COMPLETIONS, prompt_body(prompt=list(range(100)), truncate_prompt_tokens=3))
    assert backend.requests[-1].prompt_token_ids == [97, 98, 99]


async def test_tokenize_answers_as_vllm_does(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "he", "return_token_strs": True}
    answer = await ask(client, "/v1/tokenize", body)
    assert answer == {"count": 2, "max_model_len": 512, "tokens": [296, 262], "token_strs": [BOS, "he"]}
    assert (await ask(client, "/v1/tokenize", {"prompt": "he", "add_special_tokens": False}))["tokens"] == [262]


# Answers


@pytest.mark.parametrize("num_merged", [1, 4, 100])
async def test_a_stop_string_ends_a_choice_and_counts_its_tokens(
    client: httpx.AsyncClient, backend: ScriptedBackend, num_merged: int
) -> None:
    backend.max_steps_in_chunk, backend.is_merged = num_merged, True
    backend.script = lambda _request, choice: backend.ids("xx|yy|zz" if choice else "one END two")
    body = prompt_body(stop=["END", "|z"], n=2, max_tokens=50, return_token_ids=True, logprobs=0)
    answer = await ask(client, COMPLETIONS, body)
    first, second = answer["choices"]
    assert (first["text"], first["finish_reason"], first["stop_reason"]) == ("one ", "stop", "END")
    assert (second["text"], second["finish_reason"], second["stop_reason"]) == ("xx|yy", "stop", "|z")
    assert first["token_ids"] == backend.ids("one END")
    assert answer["usage"]["completion_tokens"] == len(backend.ids("one END")) + len(backend.ids("xx|yy|z"))
    assert len(first["logprobs"]["tokens"]) == len(first["token_ids"])
    assert (backend.num_open, backend.num_aborted) == (0, num_merged < 100)


@pytest.mark.parametrize("is_merged", [False, True])
async def test_a_special_token_that_the_text_hides_is_a_stop_string_all_the_same(
    client: httpx.AsyncClient, backend: ScriptedBackend, is_merged: bool
) -> None:
    backend.max_steps_in_chunk, backend.is_merged = (50 if is_merged else 1), is_merged
    (end,) = backend.ids(END_OF_TURN)
    backend.script = say(*backend.ids("one"), end, *backend.ids("\ntwo"), backend.eos_token_id)
    for stop, text, reason in (
        (END_OF_TURN, "one", END_OF_TURN),
        ([f"{END_OF_TURN}\n", "two"], "one", f"{END_OF_TURN}\n"),
        (f"e{END_OF_TURN}", "on", f"e{END_OF_TURN}"),
        ("e\nt", "on", "e\nt"),
        (EOS, "one\ntwo", EOS),
        (BOS, "one\ntwo", None),
    ):
        for keys in ({}, {"skip_special_tokens": False}):
            choice = (await ask(client, COMPLETIONS, prompt_body(stop=stop, max_tokens=20, **keys)))["choices"][0]
            if not keys or END_OF_TURN in str(stop):
                assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text, "stop", reason)
    shown = prompt_body(stop=END_OF_TURN, include_stop_str_in_output=True)
    assert (await ask(client, COMPLETIONS, shown))["choices"][0]["text"] == f"one{END_OF_TURN}"
    late = prompt_body(stop=END_OF_TURN, min_tokens=7, max_tokens=20)
    assert (await ask(client, COMPLETIONS, late))["choices"][0]["text"] == "one\ntwo"


async def test_a_stop_string_is_shown_when_asked_for(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = say(*backend.ids("one END two"))
    answer = await ask(client, COMPLETIONS, prompt_body(stop="END", include_stop_str_in_output=True))
    assert answer["choices"][0]["text"] == "one END"


async def test_stop_strings_wait_for_min_tokens(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = say(*backend.ids("a|b|c"))
    answer = await ask(client, COMPLETIONS, prompt_body(stop="|", min_tokens=3))
    assert answer["choices"][0]["text"] == "a|b"


@pytest.mark.parametrize("num_steps", [1, 7])
async def test_eos_is_counted_and_not_shown(
    client: httpx.AsyncClient, backend: ScriptedBackend, num_steps: int
) -> None:
    backend.max_steps_in_chunk = num_steps
    backend.script = say(*backend.ids("abc"), backend.eos_token_id, 64)
    for keys in ({}, {"skip_special_tokens": False}):
        answer = await ask(client, COMPLETIONS, prompt_body(**keys))
        choice = answer["choices"][0]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("abc", "stop", None)
        assert answer["usage"]["completion_tokens"] == 4


async def test_a_stop_token_is_named(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = say(64, 65, 66)
    choice = (await ask(client, COMPLETIONS, prompt_body(stop_token_ids=[65])))["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("a", "stop", 65)


async def test_echo_with_logprobs_holds_the_prompt(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    body = prompt_body(prompt=[64, 65, 66], echo=True, logprobs=1, max_tokens=2, n=2)
    for choice in (await ask(client, COMPLETIONS, body))["choices"]:
        assert choice["text"] == "abc" + ("bc" if choice["index"] else "ab")
        logprobs = choice["logprobs"]
        assert logprobs["tokens"] == list(choice["text"])
        assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
        assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5]
        assert logprobs["top_logprobs"][:2] == [None, {"b": -0.5}]
    assert backend.requests[-1].params.num_prompt_logprobs == 1


async def test_echo_and_logprobs_stream_to_the_same(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    body = prompt_body(prompt=[[64, 65, 66], [67]], echo=True, logprobs=2, max_tokens=4, n=2, return_token_ids=True)
    whole = (await ask(client, COMPLETIONS, body))["choices"]
    for num_steps, num_delayed in ((1, 0), (3, 0), (1, 2)):
        backend.max_steps_in_chunk, backend.prompt_logprobs_delay_steps = num_steps, num_delayed
        pieces = [event["choices"][0] for event in await events(client, COMPLETIONS, body)]
        for choice in whole:
            mine = [piece for piece in pieces if piece["index"] == choice["index"]]
            assert "".join(piece["text"] for piece in mine) == choice["text"]
            for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
                assert [entry for piece in mine for entry in piece["logprobs"][name]] == choice["logprobs"][name]
            assert [token for piece in mine for token in piece["token_ids"]] == choice["token_ids"]
            assert mine[0]["prompt_token_ids"] == choice["prompt_token_ids"]
            assert [piece["finish_reason"] for piece in mine][-1] == "length"


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("keys", [{}, {"echo": True}, {"n": 2}, {"echo": True, "n": 2}])
async def test_an_answer_keeps_its_first_space_and_its_tokens_join_to_it(
    tmp_path: Path, keys: dict[str, Any], is_stream: bool
) -> None:
    core = byte_fallback_tokenizer()
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    backend = ScriptedBackend(save_model_dir(tmp_path, core))
    vocab = core.get_vocab()
    the, letter = vocab["\u2581the"], vocab["a"]
    emoji = [vocab[f"<0x{byte:02X}>"] for byte in "🙂".encode()]
    backend.script = say(the, the, letter, *emoji, vocab["\u2581"], vocab["\u2581"], the)
    prompt = "the thing is"
    prompt_text = prompt if "echo" in keys else ""
    async with client_of(backend) as client:
        for asked in ({"logprobs": 1}, {}):
            body = prompt_body(prompt=prompt, max_tokens=10, **keys, **asked)
            if is_stream:
                pieces = [event["choices"][0] for event in await events(client, COMPLETIONS, body)]
            else:
                pieces = (await ask(client, COMPLETIONS, body))["choices"]
            for index in range(keys.get("n", 1)):
                mine = [piece for piece in pieces if piece["index"] == index]
                text = "".join(piece["text"] for piece in mine)
                assert text == f"{prompt_text} the thea🙂   the"
                if asked:
                    tokens = [token for piece in mine for token in piece["logprobs"]["tokens"]]
                    offsets = [offset for piece in mine for offset in piece["logprobs"]["text_offset"]]
                    assert "".join(tokens) == text
                    assert all(text.startswith(token, at) for token, at in zip(tokens, offsets, strict=True))
                    tops = [top for piece in mine for top in piece["logprobs"]["top_logprobs"]]
                    assert all(top is None or token in top for token, top in zip(tokens, tops, strict=True))


async def test_prompt_logprobs_come_as_vllm_gives_them(client: httpx.AsyncClient) -> None:
    answer = await ask(client, COMPLETIONS, prompt_body(prompt=[64, 65], prompt_logprobs=2, max_tokens=1))
    assert answer["choices"][0]["prompt_logprobs"] == [
        None,
        {
            "65": {"logprob": -0.5, "rank": 1, "decoded_token": "b"},
            "66": {"logprob": -1.5, "rank": 2, "decoded_token": "c"},
        },
    ]
    chat = await ask(client, CHAT, chat_body(prompt_logprobs=0, max_tokens=1))
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]


async def test_chat_logprobs_carry_bytes(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = say(*backend.ids("é"))
    answer = await ask(client, CHAT, chat_body(logprobs=True, top_logprobs=1, return_token_ids=True))
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "é", "refusal": None}
    assert [entry["bytes"] for entry in choice["logprobs"]["content"]] == [[0xC3], [0xA9]]
    assert [len(entry["top_logprobs"]) for entry in choice["logprobs"]["content"]] == [1, 1]
    assert choice["token_ids"] == backend.ids("é")
    assert answer["prompt_token_ids"] == backend.requests[-1].prompt_token_ids


async def test_tokens_of_log_probabilities_may_be_named_by_their_ids(client: httpx.AsyncClient) -> None:
    keys = {"max_tokens": 3, "return_tokens_as_token_ids": True, "return_token_ids": True}
    body = prompt_body(prompt=[64, 65], echo=True, logprobs=2, **keys)
    (choice,) = (await ask(client, COMPLETIONS, body))["choices"]
    token_ids = [64, 65, *choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token_id}" for token_id in token_ids]
    top = choice["logprobs"]["top_logprobs"][-1]
    assert list(top) == [f"token_id:{token_ids[-1] + offset}" for offset in range(2)]
    (choice,) = (await ask(client, CHAT, chat_body(logprobs=True, top_logprobs=1, **keys)))["choices"]
    shown = choice["logprobs"]["content"]
    assert [one["token"] for one in shown] == [f"token_id:{token_id}" for token_id in choice["token_ids"]]
    assert shown[0]["top_logprobs"][0]["token"] == shown[0]["token"]


async def test_a_chat_stream_begins_with_the_role_and_ends_with_usage(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.script = say(*backend.ids("a€\u2028b"), backend.eos_token_id)
    body = chat_body(stream_options={"include_usage": True})
    received = await events(client, CHAT, body)
    assert received[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [event["choices"][0]["delta"]["content"] for event in received[1:-2]] == ["a", "€", "\u2028", "b"]
    assert received[-2]["choices"][0]["finish_reason"] == "stop"
    assert all(event["usage"] is None for event in received[:-1])
    assert received[-1]["choices"] == []
    assert received[-1]["usage"]["completion_tokens"] == len(backend.ids("a€\u2028b")) + 1


async def test_usage_can_come_with_every_chunk(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    received = await events(client, COMPLETIONS, prompt_body(prompt=[64], max_tokens=3, stream_options=options))
    assert [event["usage"]["completion_tokens"] for event in received] == [1, 2, 3, 3]
    received = await events(client, CHAT, chat_body(max_tokens=3, stream_options=options))
    counts = [event["usage"]["completion_tokens"] for event in received]
    assert (counts[0], counts[-2:], len(set(counts))) == (0, [3, 3], len(counts) - 1)
    assert all(one["usage"]["total_tokens"] == sum(list(one["usage"].values())[:2]) for one in received)
    only_continuous = {"include_usage": False, "continuous_usage_stats": True}
    received = await events(client, COMPLETIONS, prompt_body(max_tokens=3, stream_options=only_continuous))
    assert not any(event.get("usage") for event in received)


async def test_events_are_one_line_even_with_unicode_separators(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    text = "a\u2028b\u2029c\x85d\ne"
    backend.script = say(*backend.ids(text))
    response = await client.post(CHAT, json=chat_body(stream=True))
    lines = [line for line in response.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == text


@pytest.mark.parametrize("name", ["@text@", 'org/model "x"', "模型"])
async def test_a_model_may_have_any_name(client: httpx.AsyncClient, backend: ScriptedBackend, name: str) -> None:
    backend.name = name
    received = await events(client, COMPLETIONS, prompt_body(model=name, prompt=[64], max_tokens=3))
    assert [event["choices"][0]["text"] for event in received] == ["a", "a", "a"]
    assert {event["model"] for event in received} == {name}
    assert (await client.get(f"/v1/models/{name}")).json()["id"] == name
