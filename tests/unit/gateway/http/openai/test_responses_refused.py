"""OpenAI's Responses API: what is refused, by which name, and what is taken without effect."""

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from tests.fakes import ScriptedBackend
from tests.openai_calls import CHAT, RESPONSES, ask, chat_body, client_of
from tests.unit.gateway.http.openai.responses_calls import sdk_of
from tests.unit.gateway.http.openai.test_tool_calls import backend_of

F: dict[str, Any] = {"type": "function", "name": "f"}
CALL = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}


@pytest.fixture
def backend(tmp_path: Path) -> ScriptedBackend:
    return backend_of(tmp_path, answer="x")


@pytest_asyncio.fixture
async def client(backend: ScriptedBackend) -> Any:
    async with client_of(backend) as client:
        yield client


def item(**keys: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "hi"}, keys]}


def part(**keys: Any) -> dict[str, Any]:
    return item(role="user", content=[keys])


def tool(**keys: Any) -> dict[str, Any]:
    return {"tools": [F, {"type": "function", "name": "g", **keys}]}


def choice(**keys: Any) -> dict[str, Any]:
    return {"tools": [F], "tool_choice": keys}


def text_format(**keys: Any) -> dict[str, Any]:
    return {"text": {"format": keys}}


@pytest.mark.parametrize(
    ("keys", "field", "reason"),
    [
        ({"store": True}, "store", "nothing is kept"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole history"),
        ({"conversation": "conv_1"}, "conversation", "send the whole history"),
        ({"conversation": {"id": "conv_1"}}, "conversation", "send the whole history"),
        ({"background": True}, "background", "stream=true"),
        ({"truncation": "auto"}, "truncation", '"disabled"'),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "send instructions and input"),
        ({"context_management": [{"type": "compaction"}]}, "context_management", "leave it out"),
        ({"moderation": {"model": "m"}}, "moderation", "leave it out"),
        ({"store": 1}, "store", "leave it out or send false"),
        ({"n": 2}, "n", "is unknown"),
        ({"messages": []}, "messages", "is unknown"),
        ({"max_tokens": 5}, "max_tokens", "is unknown"),
        ({"input": 5}, "input", "expected"),
        ({"input": []}, "input", "is empty"),
        ({"input": None}, "input", "expected"),
        ({"max_output_tokens": 0}, "max_output_tokens", ">= 1"),
        ({"max_output_tokens": 10**6}, "max_output_tokens", "exceed this model's context"),
        ({"max_output_tokens": 3, "min_tokens": 5}, "min_tokens", "is more than max_output_tokens=3"),
        ({"input": "hi" * 10**5}, "input", "than this model's context"),
        ({"temperature": 3}, "temperature", "<= 2"),
        ({"top_logprobs": 2}, "top_logprobs", "needs include"),
        ({"top_logprobs": 21}, "top_logprobs", "<= 20"),
        ({"include": ["file_search_call.results"]}, "include[0]", "leave it out"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "needs stream=true"),
        ({"stream_options": {"include_usage": True}, "stream": True}, "stream_options.include_usage", "is unknown"),
        ({"reasoning": {"summary": "concise"}}, "reasoning.summary", "not in summary"),
        ({"reasoning": {"generate_summary": "detailed"}}, "reasoning.generate_summary", "not in summary"),
        ({"reasoning": {"context": "all_turns"}}, "reasoning.context", "chat template"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "one mode"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", '"medium"'),
        (text_format(type="xml"), "text.format.type", "json_schema"),
        (text_format(type="json_schema", schema={}), "text.format.name", "is missing"),
        (text_format(type="json_schema", name="n"), "text.format.schema", "is missing"),
        (text_format(type="text", schema={}), "text.format.schema", "is for type=json_schema"),
        (
            text_format(type="json_schema", name="n", schema={"type": "array", "uniqueItems": True}),
            "text.format.schema",
            "uniqueItems",
        ),
        (item(content="x"), "input[1]", "neither type nor role"),
        (item(type="message", content="x"), "input[1].role", "is missing"),
        (item(role="tool", content="x"), "input[1].role", "is not known"),
        (item(role="user"), "input[1].content", "is missing"),
        (item(type="item_reference", id="msg_1"), "input[1].type", "send the item itself"),
        (item(type="web_search_call", id="ws_1", status="completed"), "input[1].type", "no built-in tools"),
        (item(type="computer_call_output", call_id="c", output={}), "input[1].type", "no built-in tools"),
        (item(type="code_interpreter_call", id="ci_1", outputs=[5], code=None), "input[1].type", "no built-in tools"),
        (item(type=5, role="user", content="x"), "input[1].type", "expected"),
        (part(type="input_image", image_url="data:"), "input[1].content[0].type", "read text alone"),
        (part(type="input_file", file_id="file-1"), "input[1].content[0].type", "read text alone"),
        (part(type="input_text"), "input[1].content[0].text", "is missing"),
        (part(type="refusal"), "input[1].content[0].refusal", "is missing"),
        (item(type="reasoning", summary=[], encrypted_content="x"), "input[1].encrypted_content", "leave the item out"),
        (item(type="reasoning", summary=[{"type": "summary_text"}]), "input[1]", "without a text"),
        (item(type="function_call", name="f", arguments="{}"), "input[1].call_id", "is missing"),
        (item(type="function_call", call_id="c", arguments="{}"), "input[1].name", "is missing"),
        (item(type="function_call_output", output="x"), "input[1].call_id", "is missing"),
        (item(type="function_call_output", call_id="c", output="x"), "input[1].call_id", "send the call too"),
        ({"input": [CALL, {"type": "function_call_output", "call_id": "c"}]}, "input[1].output", "is missing"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "no built-in tools"),
        ({"tools": [{"type": "custom", "name": "c"}]}, "tools[0].type", "send tools of type function"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "is missing"),
        ({"tools": [F, {"type": "function", "name": "a.b"}]}, "tools[1].name", "is not a tool's name"),
        ({"tools": [F, F]}, "tools[1].name", "is given twice"),
        (tool(parameters={"type": "array"}), "tools[1].parameters", "its type is not object"),
        (tool(defer_loading=True), "tools[1].defer_loading", "leave it out"),
        (tool(allowed_callers=["programmatic"]), "tools[1].allowed_callers", "leave it out"),
        ({**tool(), "tools": [F, {"type": "function", "name": "g", "async": True}]}, "tools[1].async", "leave it out"),
        ({"tools": [F], "tool_choice": "any"}, "tool_choice", "is not known"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        (choice(type="web_search"), "tool_choice.type", "no built-in tools"),
        (choice(type="function"), "tool_choice.name", "is missing"),
        (choice(type="function", name="g"), "tool_choice.name", "is not among the tools"),
        (choice(type="allowed_tools", tools=[F]), "tool_choice.mode", "is missing"),
        (choice(type="allowed_tools", mode="none", tools=[F]), "tool_choice.mode", "is not known"),
        (choice(type="allowed_tools", mode="auto"), "tool_choice.tools", "is empty"),
        (choice(type="allowed_tools", mode="auto", tools=[{"type": "mcp"}]), "tool_choice.tools[0].type", "function"),
        (
            choice(type="allowed_tools", mode="auto", tools=[{"type": "function", "name": "g"}]),
            "tool_choice.tools[0].name",
            "is not among the tools",
        ),
        (
            {
                "tools": [F, {"type": "function", "name": "g", "parameters": {"type": "array"}}],
                "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]},
            },
            "tools[1].parameters",
            "its type is not object",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "is set by the server"),
        ({"model": 5}, "model", "expected"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_its_name(
    client: httpx.AsyncClient, backend: ScriptedBackend, keys: dict[str, Any], field: str, reason: str
) -> None:
    backend.max_model_len = 512
    response = await client.post(RESPONSES, json={"model": "tiny", "input": "hi", **keys})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field), error
    assert field in error["message"]
    assert reason in error["message"]
    assert not backend.requests


async def test_an_input_is_needed(client: httpx.AsyncClient) -> None:
    error = (await client.post(RESPONSES, json={"model": "tiny"})).json()["error"]
    assert (error["param"], error["message"]) == ("input", "input is missing")


async def test_errors_do_not_translate_what_a_client_has_written(client: httpx.AsyncClient) -> None:
    body = {"input": "hi", "tools": [F], "tool_choice": {"type": "function", "name": "messages"}}
    error = (await client.post(RESPONSES, json=body)).json()["error"]
    assert "tool_choice.name='messages' is not among the tools" in error["message"]


@pytest.mark.parametrize(
    "keys",
    [
        {"store": None, "background": None, "previous_response_id": None, "conversation": None, "prompt": None},
        {"store": False, "background": False, "truncation": "disabled", "context_management": []},
        {"include": ["reasoning.encrypted_content"], "reasoning": {"summary": "auto", "effort": "high"}},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "top_logprobs": 0},
        {"service_tier": "flex", "prompt_cache_retention": "24h", "prompt_cache_options": {}, "max_tool_calls": 3},
        {"tools": [], "tool_choice": "auto", "stream_options": None, "instructions": None, "metadata": None},
        {"tools": [{**F, "output_schema": {}, "allowed_callers": ["direct"]}], "tool_choice": "none"},
        {"input": [{"role": "user", "content": "hi", "id": "msg_1", "status": "completed", "phase": None}]},
    ],
)
async def test_what_asks_for_nothing_is_taken(
    client: httpx.AsyncClient, backend: ScriptedBackend, keys: dict[str, Any]
) -> None:
    answer = await ask(client, RESPONSES, {"model": "tiny", "input": "hi", **keys})
    await ask(client, CHAT, chat_body(messages=[{"role": "user", "content": "hi"}]))
    by_responses, by_chat = backend.requests
    assert by_responses.prompt_token_ids == by_chat.prompt_token_ids
    assert (answer["store"], answer["background"], answer["truncation"]) == (False, False, "disabled")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/responses/resp_1", "/responses/resp_1", "/v1/responses/resp_1/input_items"])
async def test_no_answer_is_kept(client: httpx.AsyncClient, method: str, path: str) -> None:
    response = await client.request(method, path)
    assert response.status_code == 404
    assert "responses are not kept here" in response.json()["error"]["message"]


async def test_openais_client_is_told_that_none_is_kept(backend: ScriptedBackend) -> None:
    async with sdk_of(backend) as sdk:
        for call in (sdk.responses.retrieve, sdk.responses.delete, sdk.responses.cancel):
            with pytest.raises(openai.NotFoundError, match="responses are not kept here"):
                await call("resp_1")


async def test_a_model_that_is_not_served_is_not_found(client: httpx.AsyncClient) -> None:
    response = await client.post(RESPONSES, json={"model": "other", "input": "hi"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
