"""Cohere's chat, by Cohere's own client and by hand."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import cohere
import httpx
import pytest
import pytest_asyncio

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import UnavailableError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.types.tensors import TensorSpec
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving
from tests.openai_calls import chat_body, client_of
from tests.unit.gateway.http.anthropic.test_anthropic_thinking import THOUGHT, thinking_backend
from tests.unit.gateway.http.openai.test_tool_calls import ARGUMENTS, CALL, HERMES, WEATHER, backend_of
from tests.unit.gateway.http.test_inference_routes import answer, description

PATH = "/v2/chat"
BUDGET = {"type": "enabled", "token_budget": 5}
THINKING = f"<think>hm</think>Well.<tool_call>{CALL}</tool_call>"


async def ask(backend: ScriptedBackend, call: Callable[[cohere.ClientV2], Any]) -> Any:
    """What Cohere's client makes of the server's answer."""
    app = build_http_app(DataPlane(backend, GatewayConfig()))
    async with serving(app) as url:

        def run() -> Any:
            with httpx.Client(verify=NO_TLS) as http:
                return call(cohere.ClientV2(api_key="none", base_url=url, httpx_client=http))

        return await asyncio.to_thread(run)


@pytest_asyncio.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend) as client:
        yield client


async def refused(client: httpx.AsyncClient, **keys: Any) -> str:
    """The field that an error names."""
    response = await client.post(PATH, json=chat_body(**keys))
    assert response.status_code == 400, response.text
    error = response.json()
    assert error["message"] == error["error"]["message"]
    assert error["error"]["param"] in error["message"]
    field: str = error["error"]["param"]
    return field


def saying(backend: ScriptedBackend, text: str) -> ScriptedBackend:
    backend.script = lambda _request, _choice: [*backend.ids(text), backend.eos_token_id]
    return backend


async def test_the_client_gets_whole_answers(backend: ScriptedBackend) -> None:
    saying(backend, "Hello.").num_cached_tokens = 3
    messages: Any = [
        {"role": "system", "content": [{"type": "text", "text": "short"}, {"type": "text", "text": "please"}]},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": "go on"},
    ]
    answer = await ask(backend, lambda client: client.chat(model="tiny", messages=messages, logprobs=True))
    (request,) = backend.requests
    prompt = "[system]short\nplease[user]hello[assistant]yes[user]go on[assistant]"
    assert backend.text(request.prompt_token_ids) == prompt
    assert (answer.finish_reason, answer.message.role) == ("COMPLETE", "assistant")
    assert [(part.type, part.text) for part in answer.message.content] == [("text", "Hello.")]
    assert (answer.message.tool_calls, answer.message.tool_plan) == (None, None)
    used = (len(request.prompt_token_ids), len(backend.ids("Hello.")) + 1)
    assert (answer.usage.tokens.input_tokens, answer.usage.tokens.output_tokens) == used
    assert (answer.usage.billed_units.input_tokens, answer.usage.billed_units.output_tokens) == used
    assert answer.usage.cached_tokens == 3
    assert "".join(one.text for one in answer.logprobs) == "Hello."
    assert [one.token_ids for one in answer.logprobs] == [[one] for one in backend.script(request, 0)]
    assert {tuple(one.logprobs) for one in answer.logprobs} == {(-0.5,)}


async def test_the_client_gets_streams(backend: ScriptedBackend) -> None:
    saying(backend, "Hello\u2028you.")
    messages: Any = [{"role": "user", "content": "hello"}]
    stream = await ask(backend, lambda client: list(client.chat_stream(model="tiny", messages=messages, logprobs=True)))
    start, opened, *deltas, closed, end = stream
    assert (start.type, start.delta.message.role) == ("message-start", "assistant")
    assert (opened.type, opened.index, opened.delta.message.content.type) == ("content-start", 0, "text")
    assert {(delta.type, delta.index) for delta in deltas} == {("content-delta", 0)}
    assert "".join(delta.delta.message.content.text for delta in deltas) == "Hello\u2028you."
    token_ids = [token_id for delta in deltas for token_id in delta.logprobs.token_ids]
    assert token_ids == backend.script(backend.requests[0], 0)
    assert (closed.type, closed.index) == ("content-end", 0)
    assert (end.type, end.id, end.delta.finish_reason) == ("message-end", start.id, "COMPLETE")
    assert end.delta.usage.tokens.output_tokens == len(token_ids)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("text", "keys", "shown", "finish"),
    [
        ("Hello.", {"max_tokens": 2}, None, "MAX_TOKENS"),
        ("Hello. You.", {"stop_sequences": [" Y"]}, "Hello.", "STOP_SEQUENCE"),
        ("", {}, "", "COMPLETE"),
    ],
)
async def test_an_answer_says_why_it_ended(
    backend: ScriptedBackend, text: str, keys: Any, shown: str | None, finish: str, is_streamed: bool
) -> None:
    saying(backend, text)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], **keys}
    if is_streamed:
        events = await ask(backend, lambda client: list(client.chat_stream(**body)))
        pieces = [one.delta.message.content.text for one in events if one.type in ("content-start", "content-delta")]
        found = "".join(pieces)
        assert events[-1].delta.finish_reason == finish
    else:
        answer = await ask(backend, lambda client: client.chat(**body))
        found = answer.message.content[0].text
        assert answer.finish_reason == finish
    assert found == backend.text(backend.ids(text)[:2]) if shown is None else found == shown


@pytest.mark.parametrize("tools", [[WEATHER], None])
async def test_calls_have_a_plan_and_answers_thoughts(tmp_path: Path, tools: Any) -> None:
    backend = backend_of(tmp_path, answer=THINKING if tools else "<think>hm</think>Well.")
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    body |= {} if tools is None else {"tools": tools}
    whole = await ask(backend, lambda client: client.chat(**body))
    events = await ask(backend, lambda client: list(client.chat_stream(**body)))
    kinds = [one.type for index, one in enumerate(events) if index == 0 or one.type != events[index - 1].type]
    content = ["content-start", "content-delta", "content-end"]
    texts = [(part.type, part.thinking if part.type == "thinking" else part.text) for part in whole.message.content]
    if tools is None:
        assert texts == [("thinking", "hm"), ("text", "Well.")]
        assert kinds == ["message-start", *content, *content, "message-end"]
        thoughts = [one.delta.message.content.thinking for one in events if one.type == "content-delta"]
        assert "".join(text for text in thoughts if text) == "hm"
        assert [one.index for one in events if one.type == "content-start"] == [0, 1]
        return
    (call,) = whole.message.tool_calls
    assert (whole.finish_reason, whole.message.tool_plan, texts) == ("TOOL_CALL", "hm", [("text", "Well.")])
    assert (call.type, call.function.name, call.function.arguments) == ("function", "weather", ARGUMENTS)
    calls = ["tool-call-start", "tool-call-delta", "tool-call-end"]
    assert kinds == ["message-start", "tool-plan-delta", *content, *calls, "message-end"]
    assert "".join(one.delta.message.tool_plan for one in events if one.type == "tool-plan-delta") == "hm"
    (begun,) = [one.delta.message.tool_calls for one in events if one.type == "tool-call-start"]
    assert (begun.function.name, begun.type, len(begun.id)) == ("weather", "function", len(call.id))
    grown = [one.delta.message.tool_calls.function.arguments for one in events if one.type == "tool-call-delta"]
    assert "".join(grown) == ARGUMENTS
    assert events[-1].delta.finish_reason == "TOOL_CALL"


@pytest.mark.parametrize("num_merged", [1, 1000])
async def test_content_and_calls_are_streamed_in_the_order_in_which_they_are_written(
    tmp_path: Path, num_merged: int
) -> None:
    backend, tools = backend_of(tmp_path, answer=f"a <tool_call>{CALL}</tool_call> b"), cast(Any, [WEATHER])
    backend.max_steps_in_chunk, backend.is_merged = num_merged, True
    messages = cast(Any, [{"role": "user", "content": "hello"}])
    events = await ask(backend, lambda client: list(client.chat_stream(model="tiny", messages=messages, tools=tools)))
    kinds = [one.type for index, one in enumerate(events) if index == 0 or one.type != events[index - 1].type]
    content = ["content-start", "content-delta", "content-end"]
    calls = ["tool-call-start", "tool-call-delta", "tool-call-end"]
    assert kinds == ["message-start", *content, *calls, *content, "message-end"]


async def test_log_probabilities_of_thoughts_come_with_them(tmp_path: Path) -> None:
    backend = backend_of(tmp_path, answer="<think>hm, so</think>Well.")
    messages: Any = [{"role": "user", "content": "hello"}]
    events = await ask(backend, lambda client: list(client.chat_stream(model="tiny", messages=messages, logprobs=True)))
    shown = [one.logprobs for one in events if one.type == "content-delta"]
    token_ids = [token_id for one in shown for token_id in one.token_ids]
    assert token_ids == backend.script(backend.requests[0], 0)
    assert "".join(one.text for one in shown) == "hm, soWell."


async def test_the_client_gets_vectors(tmp_path: Path) -> None:
    directory = save_model_dir(tmp_path)
    backend = ScriptedBackend(directory, infer_script=answer)
    vector = {"embedding": TensorSpec("float32", ("batch", 3))}
    backend.extra_models = [description(directory, "vectors", "embed", vector, embedding_size=3)]
    formats = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    keys: Any = {"model": "vectors", "input_type": "search_document", "embedding_types": formats}
    inputs: Any = [{"content": [{"type": "text", "text": "ab"}]}, {"content": [{"type": "text", "text": "c"}]}]
    of_texts = await ask(backend, lambda client: client.embed(texts=["ab", "c"], truncate="NONE", **keys))
    of_inputs = await ask(backend, lambda client: client.embed(inputs=inputs, **keys))
    assert of_texts.embeddings == of_inputs.embeddings
    assert all(len(getattr(of_texts.embeddings, name)) == 2 for name in ("float_", *formats[1:]))
    assert (of_texts.texts, of_inputs.texts) == (["ab", "c"], ["ab", "c"])
    assert of_texts.meta.tokens.input_tokens == of_texts.meta.billed_units.input_tokens == 5


async def test_what_a_client_got_and_found_is_shown_to_the_template(tmp_path: Path) -> None:
    backend, tools = backend_of(tmp_path, answer=THINKING), cast(Any, [WEATHER])
    messages: Any = [{"role": "user", "content": "hello"}]
    first = await ask(backend, lambda client: client.chat(model="tiny", messages=messages, tools=tools))
    call = first.message.tool_calls[0]
    messages += [
        {"role": "assistant", "tool_calls": first.message.tool_calls, "tool_plan": first.message.tool_plan},
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": [
                {"type": "document", "document": {"data": {"sky": "grey"}}},
                {"type": "document", "document": {"data": {"sky": "blue"}, "id": "b"}},
                {"type": "document", "document": {"data": "warm"}},
                {"type": "text", "text": "no wind"},
            ],
        },
    ]
    await ask(backend, lambda client: client.chat(model="tiny", messages=messages, tools=tools))
    prompt = backend.text(backend.requests[1].prompt_token_ids)
    assert "<assistant>hmweather,city=Köln,days=2<tool>" in prompt.replace("<think>", "").replace("</think>", "")
    found = '{"sky":"grey"}\n{"id":"b","data":{"sky":"blue"}}\nwarm\nno wind'
    assert prompt.endswith(f"<tool>{found}<assistant>")


async def test_what_a_request_sets_reaches_the_model(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    keys = {"temperature": 0.5, "p": 0.25, "k": 7, "seed": 3, "frequency_penalty": 0.5, "presence_penalty": 0.75}
    off = {
        "documents": [],
        "citation_options": {"mode": "OFF"},
        "safety_mode": "OFF",
        "response_format": {"type": "text"},
    }
    response = await client.post(PATH, json=chat_body(**keys, **off, max_tokens=4, priority=9, tool_choice="NONE"))
    assert response.status_code == 200, response.text
    (request,) = backend.requests
    params = request.params
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.5, 0.25, 7, 3)
    assert (params.frequency_penalty, params.presence_penalty, params.max_tokens) == (0.5, 0.75, 4)
    assert (request.priority, params.grammar) == (9, None)
    assert "tool_calls" not in response.json()["message"]


async def test_an_answer_is_held_to_json(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["zebra"]}}}
    for given in ({}, {"json_schema": schema}):
        body = chat_body(response_format={"type": "json_object", **given}, max_tokens=1)
        assert (await client.post(PATH, json=body)).status_code == 200
    free, held = [request.params.grammar or "" for request in backend.requests]
    assert "zebra" not in free
    assert "zebra" in held


async def test_calls_can_be_asked_for_and_ruled_out(tmp_path: Path) -> None:
    backend = backend_of(tmp_path, answer=CALL)
    async with client_of(backend) as client:
        for choice in ("REQUIRED", "NONE"):
            body = chat_body(tools=[WEATHER], tool_choice=choice, strict_tools=choice == "REQUIRED")
            assert (await client.post(PATH, json=body)).status_code == 200
        for is_strict in (True, False):
            body = chat_body(tools=[WEATHER], strict_tools=is_strict)
            assert (await client.post(PATH, json=body)).status_code == 200
    required, none, strict, free = backend.requests
    assert "weather" in (strict.params.grammar or "")
    assert free.params.grammar is None
    assert "weather" in (required.params.grammar or "")
    assert none.params.grammar is None
    assert "the forecast" not in backend.text(none.prompt_token_ids)


@pytest.mark.parametrize("num_merged", [1, 9])
async def test_thinking_ends_with_its_budget_and_the_answer_follows(tmp_path: Path, num_merged: int) -> None:
    backend = thinking_backend(tmp_path, f"<think>\n{THOUGHT}")
    backend.max_steps_in_chunk, backend.is_merged = num_merged, True
    body: Any = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 200}
    body["thinking"] = {"type": "enabled", "token_budget": 20}
    whole = await ask(backend, lambda client: client.chat(**body))
    events = await ask(backend, lambda client: list(client.chat_stream(**body)))
    thoughts, text = whole.message.content
    drawn = backend.ids(f"<think>\n{THOUGHT}")[:20]
    assert thoughts.thinking == backend._tokenizer.decode(drawn, False).removeprefix("<think>\n").rstrip()
    assert (text.text, whole.finish_reason) == ("Yes.", "COMPLETE")
    contents = [one.delta.message.content for one in events if one.type == "content-delta"]
    assert "".join(one.thinking or "" for one in contents) == thoughts.thinking
    assert "".join(one.text or "" for one in contents) == "Yes."
    first, second = backend.requests[:2]
    assert second.prompt_token_ids[: len(first.prompt_token_ids) + 20] == [*first.prompt_token_ids, *drawn]
    assert (backend.num_open, len(backend.requests)) == (0, 4)


SWITCHED = HERMES.replace("<assistant>", "<assistant>{% if enable_thinking is false %}<think></think>{% endif %}")


@pytest.mark.parametrize(("template", "field"), [(SWITCHED, None), (HERMES, "thinking.type")])
async def test_reasoning_is_turned_off_where_the_template_can(tmp_path: Path, template: str, field: str | None) -> None:
    backend = backend_of(tmp_path, template, answer="Well.")
    backend.changes |= {"reasoning_parser": "think"}
    async with client_of(backend) as client:
        assert (await client.post(PATH, json=chat_body(thinking={"type": "enabled"}))).status_code == 200
        off = {"thinking": {"type": "disabled"}}
        if field is not None:
            assert await refused(client, **off) == field
            return
        assert (await client.post(PATH, json=chat_body(**off))).status_code == 200
    on, without = [request.prompt_token_ids for request in backend.requests]
    assert len(without) == len(on) + 2  # the two marks


async def test_a_model_that_does_not_reason_can_be_told_not_to(client: httpx.AsyncClient) -> None:
    assert (await client.post(PATH, json=chat_body(thinking={"type": "disabled"}))).status_code == 200
    assert await refused(client, thinking={"type": "enabled"}) == "thinking.type"


def message(role: str, **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, **keys}]}


def part(role: str = "user", **keys: Any) -> dict[str, Any]:
    return message(role, content=[keys], tool_call_id="1")


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"documents": ["a"]}, "documents"),
        ({"citation_options": {"mode": "FAST"}}, "citation_options.mode"),
        ({"citation_options": {"mode": "SLOW"}}, "citation_options.mode"),
        ({"safety_mode": "STRICT"}, "safety_mode"),
        ({"safety_mode": "LAX"}, "safety_mode"),
        ({"tool_choice": "SOME"}, "tool_choice"),
        ({"tool_choice": "REQUIRED"}, "tool_choice"),
        ({"tools": [WEATHER]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "text", "json_schema": {}}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_object", "json_schema": {"not": {}}}},
            "response_format.json_schema",
        ),
        ({"thinking": {"type": "some"}}, "thinking.type"),
        ({"thinking": {"type": "disabled", "token_budget": 5}}, "thinking.token_budget"),
        ({"thinking": BUDGET, "max_tokens": 5}, "thinking.token_budget"),
        ({"thinking": BUDGET, "logprobs": True}, "thinking.token_budget"),
        ({"thinking": BUDGET, "response_format": {"type": "json_object"}}, "thinking.token_budget"),
        ({"thinking": BUDGET, "tools": [WEATHER], "strict_tools": True}, "thinking.token_budget"),
        ({"thinking": BUDGET, "tools": [WEATHER], "tool_choice": "REQUIRED"}, "thinking.token_budget"),
        ({"thinking": BUDGET}, "thinking.type"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"max_tokens": 9999}, "max_tokens"),
        ({"k": -1}, "k"),
        ({"p": 2}, "p"),
        ({"temperature": -1}, "temperature"),
        ({"raw_prompting": True}, "raw_prompting"),
        ({"messages": []}, "messages"),
        (message("robot", content="a"), "messages[0].role"),
        (message("tool", content="a"), "messages[0].tool_call_id"),
        (message("user"), "messages[0].content"),
        (part(type="image_url"), "messages[0].content[0].type"),
        (part(type="text"), "messages[0].content[0].text"),
        (part("tool", type="document"), "messages[0].content[0].document"),
    ],
)
async def test_what_cannot_be_done_is_refused_in_coheres_words(
    client: httpx.AsyncClient, keys: Any, field: str
) -> None:
    assert await refused(client, **keys) == field


async def test_an_error_in_the_middle_ends_the_message(backend: ScriptedBackend) -> None:
    backend.error, backend.fail_at_step = UnavailableError("the copy is gone"), 2
    messages: Any = [{"role": "user", "content": "hello"}]
    events = await ask(backend, lambda client: list(client.chat_stream(model="tiny", messages=messages)))
    assert (events[-1].type, events[-1].delta.finish_reason) == ("message-end", "ERROR")
    assert "the copy is gone" in events[-1].delta.error


async def test_an_error_before_the_first_event_is_the_clients(backend: ScriptedBackend) -> None:
    backend.error = UnavailableError("the copy is gone")
    messages: Any = [{"role": "user", "content": "hello"}]
    options: Any = {"max_retries": 0}
    with pytest.raises(cohere.ServiceUnavailableError) as caught:
        await ask(
            backend,
            lambda client: list(client.chat_stream(model="tiny", messages=messages, request_options=options)),
        )
    assert "the copy is gone" in json.dumps(caught.value.body["message"])
