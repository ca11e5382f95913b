"""Values inside OpenAI's own schema, and what gateways and agents add to messages."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from tests.fakes import CHAT_TEMPLATE, ScriptedBackend, save_model_dir, say

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TOOLS_TEMPLATE = """{% for message in messages %}<{{ message.role }}>
{%- if message.tool_calls %}{% for call in message.tool_calls %}
{{- call.type }}:{{ call.function.name }}({% for key, value in call.function.arguments|items %}{{ key }}={{ value }};
{%- endfor %}){% endfor %}{% endif %}
{%- if message.content is none %}none{% else %}{{ message.content }}{% endif %}
{%- if message.tool_call_id %}#{{ message.tool_call_id }}{% endif %}
{%- if message.name %}@{{ message.name }}{% endif %}
{%- endfor %}{% if reasoning_effort is defined %}effort={{ reasoning_effort }}{% endif %}"""
USER: dict[str, Any] = {"role": "user", "content": "hi"}


@asynccontextmanager
async def calling(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    app = build_http_app(DataPlane(backend, GatewayConfig()))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client,
    ):
        yield client


async def ask(backend: ScriptedBackend, path: str, **keys: Any) -> dict[str, Any]:
    base = {"prompt": "hello"} if path == COMPLETIONS else {"messages": [USER]}
    async with calling(backend) as client:
        response = await client.post(path, json={**base, **keys})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def rendered(directory: Path, messages: list[dict[str, Any]], template: str = CHAT_TEMPLATE, **keys: Any) -> str:
    """The prompt that the messages become."""
    backend = ScriptedBackend(save_model_dir(directory, chat_template=template))
    await ask(backend, CHAT, messages=messages, max_tokens=1, **keys)
    return backend.text(backend.requests[0].prompt_token_ids)


@pytest.fixture
def backend(tmp_path: Path) -> ScriptedBackend:
    return ScriptedBackend(save_model_dir(tmp_path))


async def test_top_p_may_be_zero(backend: ScriptedBackend) -> None:
    await ask(backend, COMPLETIONS, top_p=0)
    assert backend.requests[0].params.top_p == 0


async def test_max_tokens_zero_scores_the_prompt_and_gives_nothing_more(backend: ScriptedBackend) -> None:
    answer = await ask(backend, COMPLETIONS, max_tokens=0, echo=True, logprobs=1, return_token_ids=True)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["token_ids"]) == ("hello", "length", [])
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["prompt_tokens"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert (answer["usage"]["completion_tokens"], answer["usage"]["total_tokens"]) == (0, 5)


@pytest.mark.parametrize("keys", [{"max_tokens": 0}, {"max_completion_tokens": 0}, {"max_tokens": 0, "n": 2}])
async def test_max_tokens_zero_in_chat_gives_an_empty_answer(backend: ScriptedBackend, keys: dict[str, Any]) -> None:
    answer = await ask(backend, CHAT, **keys)
    assert {choice["message"]["content"] for choice in answer["choices"]} == {""}
    assert answer["usage"]["completion_tokens"] == 0


async def test_a_stream_of_no_tokens_ends(backend: ScriptedBackend) -> None:
    async with calling(backend) as client:
        body = {"prompt": "hello", "max_tokens": 0, "echo": True, "logprobs": 0, "stream": True}
        lines = (await client.post(COMPLETIONS, json=body)).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert [event["choices"][0]["text"] for event in events] == ["hello"]
    assert lines[-2] == "data: [DONE]"


@pytest.mark.parametrize("prompt", ["", None, [""]])
async def test_an_empty_prompt_is_bos_alone(backend: ScriptedBackend, prompt: Any) -> None:
    await ask(backend, COMPLETIONS, prompt=prompt)
    assert len(backend.requests[0].prompt_token_ids) == 1


HARMLESS = {
    "store": True,
    "service_tier": "flex",
    "prompt_cache_options": {"mode": "implicit"},
    "prediction": {"type": "content", "content": "x"},
    "cache_salt": "x",
    "request_id": "x",
    "include_reasoning": False,
}


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_keys_that_cannot_change_the_answer_are_taken(backend: ScriptedBackend, path: str) -> None:
    await ask(backend, path, **HARMLESS)


async def test_reasoning_effort_is_for_templates_that_know_it(tmp_path: Path) -> None:
    told = await rendered(tmp_path / "a", [USER], TOOLS_TEMPLATE, reasoning_effort="low")
    switched = "{{ messages[0].content }}{% if enable_thinking is false %}no{% endif %}"
    assert await rendered(tmp_path / "e", [USER], switched, reasoning_effort="none") == "hino"
    assert await rendered(tmp_path / "f", [USER], switched, reasoning_effort="low") == "hi"
    asked = {"chat_template_kwargs": {"enable_thinking": True}}
    assert await rendered(tmp_path / "g", [USER], switched, reasoning_effort="none", **asked) == "hi"
    own = {"chat_template_kwargs": {"reasoning_effort": "high"}}
    assert told.endswith("effort=low")
    assert (await rendered(tmp_path / "b", [USER], TOOLS_TEMPLATE, **own)).endswith("effort=high")
    assert await rendered(tmp_path / "c", [USER], reasoning_effort="low") == await rendered(tmp_path / "d", [USER])


PLAIN: list[dict[str, Any]] = [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": "b"}, USER]
MARKED: list[dict[str, Any]] = [
    {"role": "system", "content": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
    {**USER, "cache_control": {"type": "ephemeral"}, "id": "m1"},
    {
        "role": "assistant",
        "content": [{"type": "text", "text": "b", "prompt_cache_breakpoint": {"mode": "explicit"}, "annotations": []}],
        "reasoning_content": "because",
        "reasoning": None,
        "provider_specific_fields": {"x": 1},
        "annotations": [{"type": "url_citation"}],
        "function_call": None,
        "tool_calls": None,
        "refusal": None,
        "audio": None,
    },
    USER,
]


async def test_hints_and_echoes_inside_messages_have_no_effect(tmp_path: Path) -> None:
    assert await rendered(tmp_path / "a", MARKED) == await rendered(tmp_path / "b", PLAIN)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None}, ""),
        ({}, ""),
        ({"content": []}, ""),
        ({"refusal": "no"}, "no"),
        ({"content": None, "refusal": "no"}, "no"),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, "no"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "no"}]}, "a\nno"),
    ],
)
async def test_an_assistants_message_may_have_no_content(tmp_path: Path, message: dict[str, Any], text: str) -> None:
    shown = await rendered(tmp_path, [USER, {"role": "assistant", **message}, USER], TOOLS_TEMPLATE)
    assert shown == f"<user>hi<assistant>{text or ''}<user>hi"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user"}, "messages[1].content"),
        ({"role": "tool", "tool_call_id": "c"}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{"type": "refusal", "text": "x"}]}, "messages[1].content[0].refusal"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[1].content[0].type"),
        ({"role": "assistant", "audio": {"id": "x"}}, "messages[1].audio"),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, "messages[1].tool_calls[0].function"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/tokenize"])
async def test_what_cannot_be_shown_to_the_model_is_refused_by_its_place(
    backend: ScriptedBackend, message: dict[str, Any], field: str, path: str
) -> None:
    async with calling(backend) as client:
        response = await client.post(path, json={"messages": [USER, message]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)
    assert field in response.json()["error"]["message"]
    assert backend.requests == []


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [('{"a": 2, "b": "x"}', "a=2;b=x;"), ({"a": 2}, "a=2;"), ("{}", ""), ("", ""), (None, "")],
)
async def test_a_history_of_tool_calls_is_rendered(tmp_path: Path, arguments: Any, shown: str) -> None:
    assistant: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call(arguments)]}
    messages = [USER, assistant, {"role": "tool", "tool_call_id": "c1", "content": "4"}]
    expected = f"<user>hi<assistant>function:add({shown})none<tool>4#c1"
    assert await rendered(tmp_path, messages, TOOLS_TEMPLATE) == expected


async def test_the_calls_of_old_clients_are_rendered_as_tools(tmp_path: Path) -> None:
    assistant: dict[str, Any] = {
        "role": "assistant",
        "content": "so:",
        "function_call": {"name": "add", "arguments": '{"a": 2}'},
    }
    messages = [USER, assistant, {"role": "function", "name": "add", "content": "4"}]
    expected = "<user>hi<assistant>function:add(a=2;)so:<tool>4@add"
    assert await rendered(tmp_path, messages, TOOLS_TEMPLATE) == expected


async def test_arguments_that_are_no_json_stay_the_text_that_the_model_wrote(tmp_path: Path) -> None:
    template = "{% for message in messages %}{% for call in message.tool_calls or [] %}{{ call.function.arguments }}|{{ message.content }}{% endfor %}{% endfor %}"  # noqa: E501
    assistant: dict[str, Any] = {"role": "assistant", "tool_calls": [call('{"a": ')]}
    assert await rendered(tmp_path, [USER, assistant, USER], template) == '{"a": |'


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("has_usage", [True, False])
async def test_usage_of_every_chunk_begins_with_none_of_the_answer(
    backend: ScriptedBackend, path: str, has_usage: bool
) -> None:
    options = {"include_usage": has_usage, "continuous_usage_stats": True}
    body = {"prompt": "hello", "messages": [USER], "max_tokens": 3, "stream": True, "stream_options": options}
    del body["messages" if path == COMPLETIONS else "prompt"]
    async with calling(backend) as client:
        lines = (await client.post(path, json=body)).text.split("\n\n")
    usages = [json.loads(line.removeprefix("data: ")).get("usage") for line in lines if line.startswith("data: {")]
    if not has_usage:
        assert not any(usages)
        return
    counts = [usage["completion_tokens"] for usage in usages]
    assert (counts[-2:], len(set(counts))) == ([3, 3], len(counts) - 1)
    assert (counts[0] == 0) == (path == CHAT)  # with the role
    assert all(one["total_tokens"] == one["prompt_tokens"] + one["completion_tokens"] for one in usages)


async def test_all_wrong_keys_of_a_logit_bias_are_named(backend: ScriptedBackend) -> None:
    async with calling(backend) as client:
        for keys, shown in (("900", "901"), "900, 901"), (("one", "two"), "'one', 'two'"):
            body = {"prompt": "a", "logit_bias": {"5": 1} | dict.fromkeys(keys, 1)}
            message = (await client.post(COMPLETIONS, json=body)).json()["error"]["message"]
            assert shown in message


async def test_an_answer_of_one_token_still_ends_by_length(backend: ScriptedBackend) -> None:
    backend.script = say(5, 6, 7)
    answer = await ask(backend, COMPLETIONS, max_tokens=1, return_token_ids=True)
    assert (answer["choices"][0]["token_ids"], answer["choices"][0]["finish_reason"]) == ([5], "length")


async def test_allowed_tokens_reach_the_router(backend: ScriptedBackend) -> None:
    await ask(backend, COMPLETIONS, allowed_token_ids=[7, 5, 7])
    assert backend.requests[0].params.allowed_token_ids == (7, 5)


@pytest.mark.parametrize("keys", [{"allowed_token_ids": []}, {"allowed_token_ids": [900]}, {"allowed_token_ids": [-1]}])
async def test_allowed_tokens_that_nothing_can_be_drawn_of_are_refused(backend: ScriptedBackend, keys: Any) -> None:
    async with calling(backend) as client:
        refused = await client.post(COMPLETIONS, json={"prompt": "a", **keys})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"].startswith("allowed_token_ids")
        ends = {"allowed_token_ids": [backend.eos_token_id], "min_tokens": 1}
        assert (await client.post(COMPLETIONS, json={"prompt": "a", **ends})).status_code == 400
        assert (await client.post(COMPLETIONS, json={"prompt": "a", **ends, "min_tokens": 0})).status_code == 200


async def test_log_probabilities_of_named_tokens_in_place_of_the_top_ones(backend: ScriptedBackend) -> None:
    backend.script = say(5, 7)
    keys = {"logprob_token_ids": [7, 9, 7], "return_tokens_as_token_ids": True, "max_tokens": 2}
    completion = await ask(backend, COMPLETIONS, logprobs=1, **keys)
    assert backend.requests[0].params.logprob_token_ids == (7, 9)
    tops = [set(top) for top in completion["choices"][0]["logprobs"]["top_logprobs"]]
    assert tops == [{"token_id:5", "token_id:7", "token_id:9"}, {"token_id:7", "token_id:9"}]
    chat = await ask(backend, CHAT, logprobs=True, **keys)
    content = chat["choices"][0]["logprobs"]["content"]
    shown = [[top["token"] for top in entry["top_logprobs"]] for entry in content]
    assert shown == [["token_id:5", "token_id:7", "token_id:9"], ["token_id:7", "token_id:9"]]


@pytest.mark.parametrize("keys", [{"logprobs": 1, "logprob_token_ids": [900]}, {"logprob_token_ids": [5]}])
async def test_named_tokens_need_a_vocabulary_and_logprobs(backend: ScriptedBackend, keys: Any) -> None:
    async with calling(backend) as client:
        refused = await client.post(COMPLETIONS, json={"prompt": "a", **keys})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprob_token_ids")


async def test_several_conversations_are_answered_in_their_order(backend: ScriptedBackend) -> None:
    conversations = [[USER], [USER, {"role": "assistant", "content": "no"}, USER], [{**USER, "content": "bye"}]]
    async with calling(backend) as client:
        response = await client.post(f"{CHAT}/batch", json={"messages": conversations, "max_tokens": 3, "seed": 1})
        alone = [
            (await client.post(CHAT, json={"messages": one, "max_tokens": 3, "seed": 1})).json()
            for one in conversations
        ]
    answer = response.json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    contents = [choice["message"]["content"] for choice in answer["choices"]]
    assert contents == [one["choices"][0]["message"]["content"] for one in alone]
    assert answer["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)
    assert answer["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"stream": True}, "stream"),
        ({"n": 2}, "n"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"messages": []}, "messages"),
        ({"messages": [[]]}, "messages"),
        ({"messages": [USER]}, "messages[0]"),
        ({"prompts": []}, "prompts"),
    ],
)
async def test_what_several_conversations_do_not_take_is_refused(
    backend: ScriptedBackend, keys: dict[str, Any], field: str
) -> None:
    async with calling(backend) as client:
        refused = await client.post(f"{CHAT}/batch", json={"messages": [[USER], [USER]], **keys})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


async def test_a_chat_echoes_what_its_answer_goes_on_behind(backend: ScriptedBackend) -> None:
    backend.script = say(*backend.ids(" the doctor"))
    messages = [USER, {"role": "assistant", "content": "An apple keeps"}]
    keys = {"messages": messages, "echo": True, "continue_final_message": True, "add_generation_prompt": False}
    (choice,) = (await ask(backend, CHAT, **keys))["choices"]
    assert choice["message"]["content"] == "An apple keeps the doctor"
    async with calling(backend) as client:
        lines = (await client.post(CHAT, json={**keys, "stream": True})).text.split("\n\n")
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines if "{" in line]
    assert "".join(delta.get("content") or "" for delta in deltas) == "An apple keeps the doctor"
    assert deltas[1] == {"content": "An apple keeps"}
    (own,) = (await ask(backend, CHAT, echo=True))["choices"]
    assert own["message"]["content"] == " the doctor"


async def test_roles_are_those_that_the_template_knows(tmp_path: Path) -> None:
    template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    for content in ("2 more", [{"type": "text", "text": "2 more"}]):
        shown = await rendered(tmp_path, [{"role": "critic_1", "content": content}], template)
        assert shown == "<critic_1>2 more"


async def test_whole_answers_show_what_was_not_asked_for_as_null(backend: ScriptedBackend) -> None:
    (choice,) = (await ask(backend, COMPLETIONS, max_tokens=1))["choices"]
    assert [choice[name] for name in ("token_ids", "prompt_token_ids", "prompt_logprobs")] == [None, None, None]
    chat = await ask(backend, CHAT, max_tokens=1)
    assert [chat["prompt_token_ids"], chat["prompt_logprobs"], chat["choices"][0]["token_ids"]] == [None, None, None]
    assert chat["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_minus_one_is_the_whole_vocabulary(backend: ScriptedBackend) -> None:
    size = backend.models()[0].vocab_size
    (choice,) = (await ask(backend, COMPLETIONS, max_tokens=2, logprobs=-1, prompt_logprobs=-1))["choices"]
    assert (backend.requests[0].params.num_logprobs, backend.requests[0].params.num_prompt_logprobs) == (size, size)
    assert len(choice["prompt_logprobs"][1]) >= size
    chat = await ask(backend, CHAT, max_tokens=2, logprobs=True, top_logprobs=-1)
    assert len(chat["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == size


@pytest.mark.parametrize(
    ("path", "keys", "field"),
    [
        (CHAT, {"logprobs": True, "top_logprobs": -1, "n": 4}, "logprobs"),
        (COMPLETIONS, {"prompt": "x" * 400, "prompt_logprobs": -1, "max_tokens": 1}, "prompt_logprobs"),
    ],
)
async def test_whole_vocabularies_of_many_tokens_are_refused(
    backend: ScriptedBackend, path: str, keys: dict[str, Any], field: str
) -> None:
    backend.changes = {"vocab_size": 1000}
    async with calling(backend) as client:
        base = {"messages": [USER]} if path == CHAT else {}
        response = await client.post(path, json={**base, **keys})
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)
    assert backend.requests == []


async def test_a_conversations_tokens_are_counted_with_its_tools(tmp_path: Path) -> None:
    template = "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}{{ messages[0].content }}"
    backend = ScriptedBackend(save_model_dir(tmp_path, chat_template=template))
    tools = [{"type": "function", "function": {"name": "add"}}]
    async with calling(backend) as client:
        tokens = (await client.post("/v1/tokenize", json={"messages": [USER], "tools": tools})).json()["tokens"]
        refused = await client.post("/v1/tokenize", json={"prompt": "a", "tools": tools})
    assert backend.text(tokens) == "[add]hi"
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
