"""Tools over HTTP: what chat templates are shown, what answers hold, what is refused; and openai's own client."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from tokenizers import AddedToken

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.planning.text_facts import read_answer_facts
from tests.fakes import BOS, ScriptedBackend, byte_level_tokenizer, save_model_dir, serving
from tests.openai_calls import CHAT, ask, chat_body, client_of, events

SPECIAL = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<think>", "</think>")
HERMES = """{% for tool in tools or [] %}[{{ tool | tojson }}]{% endfor %}
{%- for message in messages %}<{{ message.role }}>
{%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
{%- if message.content %}{{ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function.name }}
{%- for key, value in call.function.arguments | items %},{{ key }}={{ value }}{% endfor %}</tool_call>{% endfor %}
{%- endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
BY_TEMPLATE = {
    "hermes": HERMES,
    "mistral": HERMES.replace("<tool_call>", "[TOOL_CALLS]").replace("</tool_call>", ""),
    "llama3_json": HERMES.replace("<tool_call>", "<|python_tag|>").replace("</tool_call>", ""),
    "json": HERMES.replace("<tool_call>", "").replace("</tool_call>", ""),
    "qwen3_coder": HERMES.replace("<tool_call>", "<tool_call><function=").replace("</think>", ""),
}
ARGUMENTS = '{"city": "Köln", "days": 2}'
CALL = f'{{"name": "weather", "arguments": {ARGUMENTS}}}'
ANSWERS = {
    "hermes": f"Well.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>",
    "mistral": f"Well.[TOOL_CALLS]weather[ARGS]{ARGUMENTS}[TOOL_CALLS][{CALL}]",
    "llama3_json": f"Well.<|python_tag|>{CALL}; {CALL}",
    "json": f"[{CALL},{CALL}]",
    "qwen3_coder": "Well."
    + "<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "</function>\n</tool_call>" * 2,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the forecast",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}


def backend_of(
    directory: Path, template: str = HERMES, answer: str = ANSWERS["hermes"], **more: Any
) -> ScriptedBackend:
    """A backend whose model says `answer`, in which marks are special tokens."""
    core = byte_level_tokenizer()
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    backend = ScriptedBackend(save_model_dir(directory, core, chat_template=template), max_model_len=100_000, **more)
    facts = read_answer_facts(directory, core.get_vocab_size(), has_defaults=True)
    backend.changes = {"tool_parser": facts.tool_parser, "reasoning_parser": facts.reasoning_parser}
    backend.script = lambda _request, _choice: [*backend.ids(answer), backend.eos_token_id]
    return backend


def tool_body(**keys: Any) -> dict[str, Any]:
    return chat_body(tools=[WEATHER, NOW], **keys)


@pytest_asyncio.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend_of(tmp_path)) as client:
        yield client


def joined(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages that streamed events add up to, by choice."""
    messages: dict[int, dict[str, Any]] = {}
    for event in pieces:
        for choice in event["choices"]:
            empty: dict[str, Any] = {"content": "", "reasoning_content": "", "reasoning": "", "tool_calls": []}
            message = messages.setdefault(choice["index"], empty)
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            message["reasoning"] += delta.get("reasoning") or ""
            for piece in delta.get("tool_calls", []):
                if "id" in piece:
                    assert piece["index"] == len(message["tool_calls"])
                    assert set(piece) == {"index", "id", "type", "function"}
                    assert (piece["type"], piece["function"]["arguments"]) == ("function", "")
                    message["tool_calls"].append({**piece["function"]})
                else:
                    assert set(piece) == {"index", "function"}
                    assert set(piece["function"]) == {"arguments"}
                    message["tool_calls"][piece["index"]]["arguments"] += piece["function"]["arguments"]
            message["finish_reason"] = choice["finish_reason"]
    return [messages[index] for index in sorted(messages)]


@pytest.mark.parametrize("tool_format", ANSWERS)
async def test_calls_are_answered_whole_and_streamed(tmp_path: Path, tool_format: str) -> None:
    backend = backend_of(tmp_path, BY_TEMPLATE[tool_format], ANSWERS[tool_format])
    assert backend.changes["tool_parser"] == tool_format
    content = None if tool_format == "json" else "Well."
    async with client_of(backend) as client:
        whole = await ask(client, CHAT, tool_body(n=2))
        streamed = joined(await events(client, CHAT, tool_body(n=2)))
    for choice, pieces in zip(whole["choices"], streamed, strict=True):
        message = choice["message"]
        assert (choice["finish_reason"], message["content"]) == ("tool_calls", content)
        assert [call["function"] for call in message["tool_calls"]] == [{"name": "weather", "arguments": ARGUMENTS}] * 2
        assert len({call["id"] for call in message["tool_calls"]}) == 2
        assert (pieces["finish_reason"], pieces["content"] or None) == ("tool_calls", content)
        assert pieces["tool_calls"] == [call["function"] for call in message["tool_calls"]]


async def test_arguments_are_streamed_while_they_are_written(client: httpx.AsyncClient) -> None:
    pieces = [
        piece["function"]["arguments"]
        for event in await events(client, CHAT, tool_body())
        for piece in event["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert len(pieces) > len(ARGUMENTS), "tokens are about a character long here"


async def test_a_request_without_tools_shows_what_the_model_writes(client: httpx.AsyncClient) -> None:
    for body in (chat_body(), tool_body(tool_choice="none"), chat_body(tools=[], tool_choice="auto")):
        (choice,) = (await ask(client, CHAT, body))["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice["message"] == {"role": "assistant", "content": f"Well.\n\n{CALL}\n\n{CALL}", "refusal": None}


async def test_special_tokens_are_shown_where_they_are_not_a_call(tmp_path: Path) -> None:
    async with client_of(backend_of(tmp_path, answer=f"a <tool_call> b {BOS}c")) as client:
        (choice,) = (await ask(client, CHAT, tool_body()))["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("a <tool_call> b c", "stop")


async def test_an_answer_ends_with_its_only_call(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    async with client_of(backend) as client:
        body = tool_body(parallel_tool_calls=False)
        whole = await ask(client, CHAT, body)
        (streamed,) = joined(await events(client, CHAT, body))
    (choice,) = whole["choices"]
    assert (choice["finish_reason"], len(choice["message"]["tool_calls"])) == ("tool_calls", 1)
    assert (streamed["finish_reason"], len(streamed["tool_calls"])) == ("tool_calls", 1)
    assert whole["usage"]["completion_tokens"] < len(backend.ids(ANSWERS["hermes"])) * 0.7
    assert backend.num_aborted == 2


@pytest.mark.parametrize(
    ("keys", "finish_reason", "arguments"),
    [
        ({"max_tokens": 40}, "length", None),
        ({"max_tokens": 40, "parallel_tool_calls": False}, "length", None),
        ({"stop": "Köln"}, "tool_calls", '{"city": "'),
    ],
)
async def test_an_answer_may_end_in_a_call(
    client: httpx.AsyncClient, keys: dict[str, Any], finish_reason: str, arguments: str | None
) -> None:
    (choice,) = (await ask(client, CHAT, tool_body(**keys)))["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == finish_reason
    assert ARGUMENTS.startswith(call["function"]["arguments"])
    assert arguments is None or call["function"]["arguments"] == arguments


async def test_log_probabilities_and_usage_are_of_all_tokens(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    num_tokens = len(backend.ids(ANSWERS["hermes"])) + 1
    body = tool_body(logprobs=True, top_logprobs=1)
    async with client_of(backend) as client:
        whole = await ask(client, CHAT, body)
        streamed = await events(client, CHAT, {**body, "stream_options": {"include_usage": True}})
    assert whole["usage"]["completion_tokens"] == streamed[-1]["usage"]["completion_tokens"] == num_tokens
    assert len(whole["choices"][0]["logprobs"]["content"]) == num_tokens
    counts = [len((choice["logprobs"] or {}).get("content") or []) for one in streamed for choice in one["choices"]]
    assert sum(counts) == num_tokens


async def test_templates_are_shown_tools_and_histories(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    function = {"name": "weather", "arguments": ARGUMENTS}
    messages = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    async with client_of(backend) as client:
        await ask(client, CHAT, {"messages": messages, "tools": [WEATHER, NOW]})
        await ask(client, CHAT, {"messages": messages, "tools": [WEATHER], "tool_choice": "none"})
    shown, without = (backend._tokenizer.decode(one.prompt_token_ids, False) for one in backend.requests)
    history = "<user>hi<assistant><think>hm</think><tool_call>weather,city=Köln,days=2</tool_call><tool>rain<assistant>"
    nothing = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    tools = "".join(f"[{json.dumps(tool, ensure_ascii=False)}]" for tool in (WEATHER, nothing))
    assert shown == tools + history
    assert without == history


async def test_reasoning_stands_beside_content(tmp_path: Path) -> None:
    answer = f"<think>\nShall I?\n</think>\n\n<tool_call>{CALL}</tool_call>"
    async with client_of(backend_of(tmp_path, answer=answer)) as client:
        (choice,) = (await ask(client, CHAT, tool_body()))["choices"]
        (streamed,) = joined(await events(client, CHAT, tool_body()))
        (hidden,) = (await ask(client, CHAT, tool_body(include_reasoning=False)))["choices"]
        (without,) = (await ask(client, CHAT, chat_body()))["choices"]
    assert choice["message"]["reasoning_content"] == streamed["reasoning_content"] == "Shall I?"
    assert choice["message"]["reasoning"] == streamed["reasoning"] == "Shall I?"
    assert len(choice["message"]["tool_calls"]) == len(streamed["tool_calls"]) == 1
    assert "reasoning_content" not in hidden["message"]
    assert (without["message"]["reasoning_content"], without["message"]["content"]) == ("Shall I?", CALL)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_model_that_has_to_call_may_reason_first(tmp_path: Path, choice: Any) -> None:
    answer = f'<think>\nWhich?\n</think>\n\n[{{"name": "weather", "parameters": {ARGUMENTS}}}]'
    backend = backend_of(tmp_path, answer=answer)
    body = tool_body(tool_choice=choice)
    async with client_of(backend) as client:
        (whole,) = (await ask(client, CHAT, body))["choices"]
        (streamed,) = joined(await events(client, CHAT, body))
    assert whole["message"]["reasoning"] == streamed["reasoning"] == "Which?"
    assert whole["message"]["content"] is None
    assert streamed["content"] == ""
    (call,) = whole["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": ARGUMENTS} == streamed["tool_calls"][0]
    assert whole["finish_reason"] == streamed["finish_reason"] == "tool_calls"
    assert f"<[{backend._tokenizer.token_to_id('</think>')}]>" in (backend.requests[0].params.grammar or "")


@pytest.mark.parametrize("keys", [{}, {"include_reasoning": False}, {"n": 2}])
async def test_usage_counts_the_tokens_of_reasoning(tmp_path: Path, keys: dict[str, Any]) -> None:
    backend = backend_of(tmp_path, answer="<think>\nShall I?\n</think>\n\nYes.")
    num_tokens = len(backend.ids("<think>\nShall I?\n</think>"))
    body = chat_body(**keys)
    async with client_of(backend) as client:
        whole = (await ask(client, CHAT, body))["usage"]
        streamed = await events(client, CHAT, {**body, "stream_options": {"include_usage": True}})
    expected = {"reasoning_tokens": num_tokens * keys.get("n", 1)}
    assert whole["completion_tokens_details"] == streamed[-1]["usage"]["completion_tokens_details"] == expected


async def test_reasoning_ends_with_its_budget(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    thought, closing = backend.ids("<think>" + "so and so " * 20), backend.ids("\n</think>\n\n")

    def script(request: Any, _choice: int) -> list[int]:
        is_closed = request.prompt_token_ids[-len(closing) :] == closing
        return [*(backend.ids("Yes.") if is_closed else thought), backend.eos_token_id]

    backend.script = script
    body = chat_body(thinking_token_budget=9, return_token_ids=True, prompt_logprobs=0, max_tokens=100)
    async with client_of(backend) as client:
        answer = await ask(client, CHAT, body)
        (streamed,) = joined(await events(client, CHAT, {**body, "prompt_logprobs": None}))
    (choice,) = answer["choices"]
    assert choice["token_ids"] == [*thought[:9], *closing, *backend.ids("Yes."), backend.eos_token_id]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Yes.", "stop")
    assert choice["message"]["reasoning"] == streamed["reasoning"]
    assert streamed["content"] == "Yes."
    assert len(answer["prompt_logprobs"]) == len(answer["prompt_token_ids"])


async def test_a_prompt_may_have_begun_the_reasoning(tmp_path: Path) -> None:
    template = HERMES.replace("<assistant>{% endif %}", "<assistant><think>\n{% endif %}")
    async with client_of(backend_of(tmp_path, template, "so</think>yes")) as client:
        (choice,) = (await ask(client, CHAT, chat_body()))["choices"]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("so", "yes")


def function(**keys: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **keys}}


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"tools": [function(name="../../etc/passwd")]}, "tools[0].function.name"),
        ({"tools": [function(name="a.b")]}, "tools[0].function.name"),
        ({"tools": [function(name="a" * 65)]}, "tools[0].function.name"),
        ({"tools": [function(name="")]}, "tools[0].function.name"),
        ({"tools": [function(name="f\n")]}, "tools[0].function.name"),
        ({"tools": [function(), function()]}, "tools[1].function.name"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [function(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [function(parameters={"type": "array"})]}, "tools[0].function.parameters"),
        ({"tools": [function(strict=True, parameters={"not": {}})]}, "tools"),
        ({"tools": [function()], "structured_outputs": {"regex": "a"}}, "tools"),
        ({"tools": [function(name=f"f{number}") for number in range(1025)]}, "tools"),
        ({"tools": [function(parameters={"$ref": "http://a/b"})], "tool_choice": "required"}, "tools"),
        ({"thinking_token_budget": 9, "n": 2}, "thinking_token_budget"),
        ({"thinking_token_budget": 9, "logprobs": True}, "thinking_token_budget"),
        ({"thinking_token_budget": 9, "tools": [function()], "tool_choice": "required"}, "thinking_token_budget"),
        ({"thinking_token_budget": 0}, "thinking_token_budget"),
        ({"tools": [function()], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [function()], "tool_choice": function(name="g")}, "tool_choice.function.name"),
        ({"tools": [function()], "tool_choice": {"type": "custom", "function": {"name": "f"}}}, "tool_choice.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": function()}, "tool_choice"),
        ({"tools": [function()], "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_its_place(
    client: httpx.AsyncClient, keys: dict[str, Any], field: str
) -> None:
    response = await client.post(CHAT, json=chat_body(**keys))
    assert (response.status_code, response.json()["error"]["param"]) == (400, field), response.text


async def test_a_model_whose_template_shows_no_tools_takes_none(tmp_path: Path) -> None:
    async with client_of(backend_of(tmp_path, "{{ messages[0].content }}", "hi")) as client:
        refused = await client.post(CHAT, json=tool_body())
        taken = await ask(client, CHAT, tool_body(tool_choice="none"))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
    assert "chat template shows none" in refused.json()["error"]["message"]
    assert taken["choices"][0]["message"]["content"] == "hi"


async def test_a_tool_with_ten_thousand_properties_is_served_or_too_long(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    properties = {f"p{number}": {"type": "integer"} for number in range(10_000)}
    tool = function(name="weather", parameters={"type": "object", "properties": properties})
    async with client_of(backend) as client:
        refused = await client.post(CHAT, json=chat_body(tools=[tool]))
        backend.max_model_len = 10**6
        answer = await ask(client, CHAT, chat_body(tools=[tool]))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 2


async def test_broken_json_is_handed_on_as_the_model_wrote_it(tmp_path: Path) -> None:
    answer = '<tool_call>{"name": "weather", "arguments": {"city": nowhere]}</tool_call>'
    async with client_of(backend_of(tmp_path, answer=answer)) as client:
        (choice,) = (await ask(client, CHAT, tool_body()))["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": nowhere]'


async def test_openais_client_and_its_stream_helper(tmp_path: Path) -> None:
    async with (
        serving(build_http_app(DataPlane(backend_of(tmp_path), GatewayConfig()))) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk,
    ):
        await check_client(sdk)


async def check_client(sdk: openai.AsyncOpenAI) -> None:
    """A call whole, through the stream helper, and in a history."""
    asked: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "tools": [WEATHER]}
    whole = (await sdk.chat.completions.create(**asked)).choices[0]
    assert whole.finish_reason == "tool_calls"
    done, arguments = [], ""
    async with sdk.chat.completions.stream(**asked) as stream:
        async for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                arguments += event.arguments_delta
            elif event.type == "tool_calls.function.arguments.done":
                done.append((event.index, event.name, event.arguments))
        final = (await stream.get_final_completion()).choices[0]
    assert done == [(0, "weather", ARGUMENTS), (1, "weather", ARGUMENTS)]
    assert arguments == ARGUMENTS * 2
    assert (final.finish_reason, final.message.content) == ("tool_calls", "Well.")
    assert [call.function.arguments for call in final.message.tool_calls or []] == [ARGUMENTS] * 2
    again = [*asked["messages"], final.message, {"role": "tool", "tool_call_id": "x", "content": "rain"}]
    assert (await sdk.chat.completions.create(**{**asked, "messages": again})).choices[0].finish_reason == "tool_calls"
