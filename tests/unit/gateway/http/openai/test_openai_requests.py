"""Bodies of OpenAI's API that are taken, and what comes of each key."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.types.generation import SamplingDefaults
from tests.fakes import (
    BOS,
    ScriptedBackend,
)
from tests.openai_calls import CHAT, COMPLETIONS, ask, chat_body, client_of, events, prompt_body

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
