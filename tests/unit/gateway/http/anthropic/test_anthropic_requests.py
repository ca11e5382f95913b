"""What the Messages API takes, and what models are shown of it, sent by Anthropic's own client."""

import json
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.anthropic_calls import ASKED, WEATHER, sdk_of
from tests.fakes import ScriptedBackend, say
from tests.unit.gateway.http.openai.test_tool_calls import HERMES, backend_of


def turn(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
    """One message."""
    return {"role": role, "content": list(blocks)}


USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1"}
HI = {"role": "user", "content": "hi"}
CALLED = [HI, turn("assistant", USE)]


def shown(backend: ScriptedBackend) -> str:
    """The prompt of the last request, marks included."""
    text: str = backend._tokenizer.decode(backend.requests[-1].prompt_token_ids, False)
    return text


def text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": one, "cache_control": {"type": "ephemeral", "ttl": "1h"}} for one in texts]


@pytest.mark.parametrize(
    ("keys", "prompt"),
    [
        ({"messages": [HI]}, "<user>hi<assistant>"),
        ({"messages": [HI], "system": "be"}, "<system>be<user>hi<assistant>"),
        ({"messages": [HI], "system": text("be", "kind")}, "<system>be\nkind<user>hi<assistant>"),
        ({"messages": [HI, {"role": "user", "content": text("a", "b")}]}, "<user>hi\na\nb<assistant>"),
        ({"messages": [HI, {"role": "system", "content": "be"}]}, "<user>hi<system>be<assistant>"),
        (
            {
                "messages": [
                    HI,
                    {"role": "assistant", "content": "so"},
                    {"role": "assistant", "content": text("so")},
                    HI,
                ]
            },
            "<user>hi<assistant>so\nso<user>hi<assistant>",
        ),
        ({"messages": [HI, {"role": "assistant", "content": "The best is ("}]}, "<user>hi<assistant>The best is ("),
        ({"messages": [HI, {"role": "assistant", "content": []}]}, "<user>hi<assistant>"),
        (
            {
                "messages": [
                    *CALLED,
                    turn("user", {**RESULT, "content": "rain"}, *text("and?")),
                ]
            },
            "<user>hi<assistant><tool_call>weather,city=Köln</tool_call><tool>rain<user>and?<assistant>",
        ),
        (
            {
                "messages": [
                    *CALLED,
                    turn("user", {**RESULT, "content": text("a", "b"), "is_error": True}),
                ]
            },
            "<user>hi<assistant><tool_call>weather,city=Köln</tool_call><tool>Error: a\nb<assistant>",
        ),
        (
            {
                "messages": [
                    HI,
                    turn("assistant", {"type": "thinking", "thinking": "hm", "signature": "x"}, *text("so"), USE),
                    turn("user", RESULT),
                ]
            },
            "<user>hi<assistant><think>hm</think>so<tool_call>weather,city=Köln</tool_call><tool><assistant>",
        ),
    ],
)
async def test_templates_are_shown_the_conversation(tmp_path: Path, keys: dict[str, Any], prompt: str) -> None:
    backend = backend_of(tmp_path, HERMES)
    async with sdk_of(backend) as sdk:
        await sdk.messages.create(**{**ASKED, **keys})
        assert shown(backend) == prompt
        counted = await sdk.messages.count_tokens(model="tiny", **keys)
    assert counted.input_tokens == len(backend.requests[-1].prompt_token_ids)


async def test_templates_are_shown_tools_unless_none_may_be_called(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    example = {"city": "Bonn"}
    tool: Any = {**WEATHER, "input_examples": [example], "cache_control": {"type": "ephemeral"}, "type": "custom"}
    async with sdk_of(backend) as sdk:
        await sdk.messages.create(**ASKED, tools=[tool])
        (offered,) = json.loads(f"[{shown(backend).partition(']<')[0].removeprefix('[')}]")
        counted = await sdk.messages.count_tokens(model="tiny", messages=ASKED["messages"], tools=[tool])
        assert counted.input_tokens == len(backend.requests[-1].prompt_token_ids)
        await sdk.messages.create(**ASKED, tools=[tool], tool_choice={"type": "none"})
    assert offered["function"] == {
        "name": "weather",
        "description": "the forecast",
        "parameters": {**WEATHER["input_schema"], "examples": [example]},
    }
    assert shown(backend) == "<user>hello<assistant>"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
async def test_an_answer_that_has_to_call_is_held_to_calls(tmp_path: Path, choice: Any) -> None:
    backend = backend_of(tmp_path, answer='[{"name": "weather", "arguments": {"city": "Bonn"}}]')
    async with sdk_of(backend) as sdk:
        answer = await sdk.messages.create(**{**ASKED, "tools": [WEATHER], "tool_choice": choice})
    assert [block.type for block in answer.content] == ["tool_use"]
    assert '"city"' in (backend.requests[0].params.grammar or "").replace("\\", "")


async def test_how_tokens_are_drawn_is_as_in_a_chat(sdk: anthropic.AsyncAnthropic, backend: ScriptedBackend) -> None:
    extra = {
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 7,
        "seed": 4,
        "priority": 3,
        "cache_salt": "s",
        "prompt_cache_key": "k",
    }
    await sdk.messages.create(
        **ASKED,
        metadata={"user_id": "me"},
        service_tier="auto",
        extra_body={**extra, "mcp_servers": [], "context_management": None},
        extra_headers={"anthropic-version": "2099-01-01", "anthropic-beta": "a,b", "x-request-timeout-ms": "60000"},
    )
    (request,) = backend.requests
    params = request.params
    assert (params.temperature, params.top_p, params.top_k, params.seed, params.max_tokens) == (0.5, 0.8, 7, 4, 200)
    assert (request.priority, bool(request.session), request.cache_salt) == (3, True, "0 s")
    assert 0 < (request.time_left_s or 0) <= 60


@pytest.mark.parametrize(
    ("keys", "switches"),
    [
        ({}, ",,"),
        ({"thinking": {"type": "adaptive"}}, "True,True,"),
        ({"thinking": {"type": "disabled"}}, "False,False,"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "True,True,low"),
        ({"extra_body": {"chat_template_kwargs": {"thinking": 7}}}, ",7,"),
    ],
)
async def test_templates_are_told_whether_to_think(tmp_path: Path, keys: dict[str, Any], switches: str) -> None:
    backend = backend_of(tmp_path, "{{ enable_thinking }},{{ thinking }},{{ reasoning_effort }}</think>", "so")
    async with sdk_of(backend) as sdk:
        await sdk.messages.create(**ASKED, **keys)
        await sdk.messages.count_tokens(model="tiny", messages=[HI], **keys)  # type: ignore[list-item]
    assert shown(backend) == f"{switches}</think>"


TOOL = {"name": "f", "input_schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "messages is empty"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content is empty"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "user, assistant, system"),
        (
            {"messages": [turn("user", {"type": "image", "source": {}})]},
            'messages[0].content[0].type="image"',
        ),
        ({"messages": [turn("user", {"type": "document", "source": {}})]}, "send the document's text"),
        (
            {"messages": [turn("user", {"type": "search_result"})]},
            "is not served; send text, thinking",
        ),
        (
            {"messages": [turn("assistant", {"type": "redacted_thinking", "data": "a"})]},
            "leave it out",
        ),
        ({"messages": [turn("assistant", {"type": "server_tool_use"})]}, "another server ran"),
        ({"messages": [turn("assistant", {"type": "web_search_tool_result"})]}, "another server ran"),
        ({"messages": [turn("user", {"text": "a"})]}, "content[0].type is missing"),
        ({"messages": [turn("user", USE)]}, "messages[0].content[0].type=tool_use belongs"),
        ({"messages": [turn("user", RESULT)]}, "messages[0].content[0].tool_use_id='toolu_1'"),
        (
            {"messages": [*CALLED, turn("assistant", RESULT)]},
            "messages[2].content[0].type=tool_result",
        ),
        ({"messages": [*CALLED, turn("system", RESULT)]}, "messages[2].content[0].type=tool_result"),
        ({"messages": CALLED}, "messages[1].content[0]: the tool_use has no tool_result"),
        (
            {
                "messages": [
                    HI,
                    turn("assistant", {"type": "thinking", "thinking": "a", "signature": ""}),
                ]
            },
            "cannot go on behind thinking",
        ),
        (
            {"messages": [*CALLED, turn("user", {**RESULT, "content": [{"type": "image"}]})]},
            'messages[2].content[0].content[0].type="image"',
        ),
        ({"system": [{"type": "image"}]}, 'system[0].type="image"'),
        ({"system": [{"type": "tool_use"}]}, "does not belong in system"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 'tools[0].type="web_search_20250305"'),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "input_schema"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema is missing"),
        ({"tools": [{"name": "a.b", "input_schema": {}}]}, "tools[0].name='a.b'"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name='f' is given twice"),
        (
            {"tools": [{"name": "f", "input_schema": {"type": "array"}}]},
            "tools[0].input_schema: its type",
        ),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [{**TOOL, "allowed_callers": ["code_execution_20260120"]}]}, "tools[0].allowed_callers"),
        ({"tools": [{**TOOL, "eager_input_streaming": False}]}, "tools[0].eager_input_streaming"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}},
            "tool_choice.name='g' is not among",
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name is missing"),
        ({"tools": [TOOL], "tool_choice": {"type": "any", "name": "f"}}, "tool_choice.name is for type=tool"),
        ({"tool_choice": {"type": "any"}}, "tool_choice needs tools"),
        ({"tool_choice": {"type": "required"}}, "expected one of any, auto, none, tool"),
        ({"stop_sequences": [""]}, "stop_sequences[0] is empty"),
        ({"stop_sequences": ["a"] * 33}, "stop_sequences has 33 strings"),
        ({"thinking": {"type": "adaptive", "budget_tokens": 5}}, "thinking.budget_tokens is for type=enabled"),
        ({"thinking": {"type": "between_tools"}}, "adaptive, disabled, enabled"),
        ({"output_config": {"effort": "huge"}}, "high, low, max, medium, xhigh"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "output_config.format.schema"),
        ({"extra_body": {"mcp_servers": [{"url": "a"}]}}, "mcp_servers is not supported"),
        ({"container": "c"}, "container is not supported"),
        ({"extra_body": {"fallbacks": []}}, "fallbacks is unknown; leave it out"),
        ({"extra_body": {"temperature": 3}}, "temperature=3 cannot be used"),
        ({"extra_headers": {"x-request-timeout-ms": "soon"}}, "x-request-timeout-ms is not a number"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_what_cannot_be_done_is_refused_in_the_words_of_this_api(
    tool_sdk: anthropic.AsyncAnthropic, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as told:
        await tool_sdk.messages.create(**{**ASKED, **keys})
    assert words in (told.value.api_message or "")
    assert told.value.type == "invalid_request_error"


async def test_a_template_that_does_not_show_the_last_message_lets_no_answer_go_on_behind_it(tmp_path: Path) -> None:
    async with sdk_of(backend_of(tmp_path, "{{ messages[0].content }}")) as sdk:
        with pytest.raises(anthropic.BadRequestError) as told:
            await sdk.messages.create(**{**ASKED, "messages": [HI, {"role": "assistant", "content": "so"}]})
    words = "messages: the chat template does not show the last message; end with one of the user's"
    assert told.value.api_message == words


async def test_a_prompt_of_any_length_is_counted(sdk: anthropic.AsyncAnthropic, backend: ScriptedBackend) -> None:
    long: Any = [{"role": "user", "content": "hello " * 1000}]
    counted = await sdk.messages.count_tokens(model="tiny", messages=long)
    assert counted.input_tokens > backend.max_model_len
    with pytest.raises(anthropic.BadRequestError, match="context"):
        await sdk.messages.create(**{**ASKED, "messages": long})


async def test_a_beta_client_is_answered_too(sdk: anthropic.AsyncAnthropic, backend: ScriptedBackend) -> None:
    backend.script = say(*backend.ids("yes"), backend.eos_token_id)
    answer = await sdk.beta.messages.create(**ASKED, betas=["context-1m-2025-08-07"])
    assert [block.text for block in answer.content if block.type == "text"] == ["yes"]
