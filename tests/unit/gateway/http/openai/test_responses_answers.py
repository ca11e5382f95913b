"""OpenAI's Responses API: what its own client gets, whole and streamed."""

from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from tests.fakes import ScriptedBackend, save_model_dir
from tests.openai_calls import CHAT, ask, chat_body, client_of
from tests.unit.gateway.http.openai.responses_calls import (
    THOUGHT,
    WEATHER,
    kinds,
    saying,
    sdk_of,
    streamed,
    whole,
    without_ids,
)
from tests.unit.gateway.http.openai.test_tool_calls import ANSWERS, ARGUMENTS, BY_TEMPLATE, CALL, backend_of
from tests.unit.gateway.http.test_chain_routes import MAIL, put_before

LOGPROBS = "message.output_text.logprobs"


async def test_a_text_is_answered_by_a_message(tmp_path: Path) -> None:
    backend = saying(tmp_path, "Well met.")
    async with sdk_of(backend) as sdk:
        answer = await sdk.responses.create(model="tiny", input="hi", instructions="Be brief.", max_output_tokens=99)
    assert (answer.output_text, answer.status, answer.object) == ("Well met.", "completed", "response")
    assert (answer.id[:5], answer.output[0].type, (answer.output[0].id or "")[:4]) == ("resp_", "message", "msg_")
    assert answer.usage is not None
    num_input, num_output = len(backend.requests[0].prompt_token_ids), len(backend.ids("Well met.")) + 1
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (num_input, num_output)
    assert answer.usage.total_tokens == num_input + num_output
    assert (answer.instructions, answer.max_output_tokens, answer.truncation) == ("Be brief.", 99, "disabled")
    assert answer.to_dict()["store"] is False
    assert backend.text(backend.requests[0].prompt_token_ids) == "<system>Be brief.<user>hi<assistant>"


async def test_events_come_in_their_order(tmp_path: Path) -> None:
    events = await streamed(saying(tmp_path, "Well."), input="hi", metadata={"a": "b"})
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == "Well."
    created, last = events[0]["response"], events[-1]["response"]
    assert (created["status"], created["output"], created["usage"]) == ("in_progress", [], None)
    assert (last["status"], last["id"], last["metadata"]) == ("completed", created["id"], {"a": "b"})
    assert last["output"] == [events[-2]["item"]]
    assert {event["item_id"] for event in events if "item_id" in event} == {last["output"][0]["id"]}


@pytest.mark.parametrize(
    "text", ["@text@ twice: @text@", 'a "quote" \\ and \t', "lines\u2028and\u2029parts\x85", "grüß 你好 🦆"]
)
async def test_pieces_add_up_to_the_text(tmp_path: Path, text: str) -> None:
    backend = saying(tmp_path, text)
    events = await streamed(backend, input="hi")
    pieces = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(pieces) == events[-1]["response"]["output"][0]["content"][0]["text"] == text
    assert len(pieces) > 4


@pytest.mark.parametrize("tool_format", ANSWERS)
async def test_reasoning_text_and_calls_are_items_of_their_own(tmp_path: Path, tool_format: str) -> None:
    answer = f"<think>\nShall I?\n</think>\n\n{ANSWERS[tool_format]}"
    backend = backend_of(tmp_path, BY_TEMPLATE[tool_format], answer)
    backend.changes["reasoning_parser"] = "think"
    asked: dict[str, Any] = {"input": "hi", "tools": [WEATHER]}
    plain = await whole(backend, **asked)
    events = await streamed(backend, **asked)
    call = {"type": "function_call", "status": "completed", "name": "weather", "arguments": ARGUMENTS}
    said = {"type": "output_text", "text": "Well.", "annotations": [], "logprobs": []}
    message = {"type": "message", "status": "completed", "role": "assistant", "content": [said]}
    thought = [{"type": "reasoning_text", "text": "Shall I?"}]
    reasoning = {"type": "reasoning", "status": "completed", "summary": [], "content": thought}
    expected = [reasoning, *([] if tool_format == "json" else [message]), call, call]
    assert without_ids(plain["output"]) == expected
    assert without_ids(events[-1]["response"]["output"]) == expected
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == (
        events[-1]["response"]["output"]
    )
    in_a_call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done"]
    assert kinds(events)[-9:] == [*in_a_call, "output_item.done"] * 2 + ["completed"]
    assert kinds(events)[2:8] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    num_calls = len({item["call_id"] for item in plain["output"] if item["type"] == "function_call"})
    assert num_calls == 2


@pytest.mark.parametrize("size", [1, 3, 7, 500])
async def test_text_may_stand_between_calls(tmp_path: Path, size: int) -> None:
    call = f"<tool_call>{CALL}</tool_call>"
    backend = saying(tmp_path, f"One. {call} Two. {call} Three.")
    backend.max_steps_in_chunk, backend.is_merged = size, True
    events = await streamed(backend, input="hi", tools=[WEATHER])
    output = events[-1]["response"]["output"]
    assert output == [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["arguments"] for item in output if item["type"] == "function_call"] == [ARGUMENTS] * 2
    said = [item["content"][0]["text"] for item in output if item["type"] == "message"]
    assert [text.strip() for text in said] == ["One.", "Two.", "Three."]
    assert [item["type"] for item in output] == ["message", "function_call"] * 2 + ["message"]


async def test_arguments_are_streamed_while_they_are_written(tmp_path: Path) -> None:
    events = await streamed(saying(tmp_path, f"<tool_call>{CALL}</tool_call>"), input="hi", tools=[WEATHER])
    pieces = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(pieces) == ARGUMENTS
    assert len(pieces) > 8


@pytest.mark.parametrize("size", [1, 4, 500])
async def test_tokens_of_reasoning_are_counted(tmp_path: Path, size: int) -> None:
    backend = saying(tmp_path, THOUGHT)
    backend.max_steps_in_chunk, backend.num_cached_tokens = size, 3
    answer = await whole(backend, input="hi", tools=[WEATHER])
    details = answer["usage"]["output_tokens_details"]
    assert details == {"reasoning_tokens": len(backend.ids("<think>\nShall I?\n</think>"))}
    assert answer["usage"]["input_tokens_details"] == {"cached_tokens": 3, "cache_write_tokens": 0}


@pytest.mark.parametrize("size", [1, 4, 500])
async def test_log_probabilities_are_of_the_texts_tokens_alone(tmp_path: Path, size: int) -> None:
    backend = saying(tmp_path, THOUGHT.replace("Well.", "Well, grüß Gott."))
    backend.max_steps_in_chunk, backend.is_merged = size, True
    asked: dict[str, Any] = {"input": "hi", "tools": [WEATHER], "include": [LOGPROBS], "top_logprobs": 2}
    plain = await whole(backend, **asked)
    (message,) = [item for item in plain["output"] if item["type"] == "message"]
    (part,) = message["content"]
    written = b"".join(bytes(entry["bytes"]) for entry in part["logprobs"])
    assert written.decode() == part["text"] == "Well, grüß Gott."
    assert {len(entry["top_logprobs"]) for entry in part["logprobs"]} == {2}
    events = await streamed(backend, **asked)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [entry for event in deltas for entry in event["logprobs"]] == part["logprobs"]


@pytest.mark.parametrize("size", [1, 500])
async def test_log_probabilities_of_texts_around_a_call_are_of_each_text_alone(tmp_path: Path, size: int) -> None:
    backend = saying(tmp_path, f"ok <tool_call>{CALL}</tool_call> ok so")
    backend.max_steps_in_chunk, backend.is_merged = size, True
    answer = await whole(backend, input="hi", tools=[WEATHER], include=[LOGPROBS])
    parts = [item["content"][0] for item in answer["output"] if item["type"] == "message"]
    written = [b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode() for part in parts]
    assert [text.strip() for text in written] == [part["text"].strip() for part in parts] == ["ok", "ok so"]


async def test_each_log_probability_is_of_one_text_where_a_stop_string_holds_a_text_back(tmp_path: Path) -> None:
    head = "It shall be as you wish, of course, since nobody else has asked for anything of the kind before: fine"
    said = f"{head} <tool_call>{CALL}</tool_call> so be it"
    backend = saying(tmp_path, said)
    backend.max_steps_in_chunk, backend.is_merged = len(backend.ids(head)), True
    assert len(backend.ids(said)) < 2 * backend.max_steps_in_chunk, "the second piece has the rest"
    asked: dict[str, Any] = {"input": "hi", "tools": [WEATHER], "include": [LOGPROBS], "stop": "fine <tool_call>never"}
    answer = await whole(backend, **asked)
    parts = [item["content"][0] for item in answer["output"] if item["type"] == "message"]
    assert [part["text"].strip() for part in parts] == [head, "so be it"]
    first, second = (b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode() for part in parts)
    assert first.startswith(head.removesuffix(" fine"))
    assert first.endswith("</tool_call>")
    assert second == " so be it"


async def test_an_answer_that_is_cut_is_incomplete(tmp_path: Path) -> None:
    backend = saying(tmp_path, THOUGHT)
    async with sdk_of(backend) as sdk:
        answer = await sdk.responses.create(model="tiny", input="hi", max_output_tokens=4)
    (item,) = answer.output
    assert item.type == "reasoning"
    assert (answer.status, item.status, answer.error) == ("incomplete", "incomplete", None)
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.output_tokens_details.reasoning_tokens == 4
    events = await streamed(backend, input="hi", max_output_tokens=4)
    assert kinds(events)[-4:] == ["reasoning_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert events[-1]["response"]["status"] == events[-2]["item"]["status"] == "incomplete"


async def test_an_answer_that_says_nothing_has_a_message(tmp_path: Path) -> None:
    backend = saying(tmp_path, "")
    (message,) = (await whole(backend, input="hi"))["output"]
    assert message["content"] == [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]
    events = await streamed(backend, input="hi")
    assert kinds(events)[2:5] == ["output_item.added", "content_part.added", "output_text.done"]


class Forecast(pydantic.BaseModel):
    city: str
    days: int


async def test_parsed_answers_are_held_to_their_type(tmp_path: Path) -> None:
    backend = saying(tmp_path, ARGUMENTS)
    async with sdk_of(backend) as sdk:
        answer = await sdk.responses.parse(model="tiny", input="hi", text_format=Forecast)
        async with sdk.responses.stream(model="tiny", input="hi", text_format=Forecast) as stream:
            snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        loose = await sdk.responses.create(model="tiny", input="hi", text={"format": {"type": "json_object"}})
    assert answer.output_parsed == final.output_parsed == Forecast(city="Köln", days=2)
    assert snapshots[-1] == ARGUMENTS
    assert answer.text is not None
    assert answer.text.format is not None
    assert (answer.text.format.type, loose.output_text) == ("json_schema", ARGUMENTS)
    first, second, third = (request.params.grammar for request in backend.requests)
    assert first is not None
    assert first == second
    assert third not in (None, first)


async def test_prompt_and_output_are_shown_as_they_are_where_that_is_asked_for(tmp_path: Path) -> None:
    backend = saying(tmp_path, THOUGHT)
    answer = await whole(backend, input="hi", enable_response_messages=True)
    (shown,), (written,) = answer["input_messages"], answer["output_messages"]
    prompt = backend.requests[0].prompt_token_ids
    assert shown == {
        "type": "raw_message_tokens",
        "message": backend._tokenizer.decode(prompt, False),
        "tokens": prompt,
    }
    assert written["tokens"] == [*backend.ids(THOUGHT), backend.eos_token_id]
    assert written["message"].startswith("<think>")
    last = (await streamed(backend, input="hi", enable_response_messages=True))[-1]["response"]
    assert last["output_messages"] == [written]
    assert "input_messages" not in await whole(backend, input="hi")


async def test_the_stream_helper_gathers_calls(tmp_path: Path) -> None:
    async with sdk_of(saying(tmp_path, THOUGHT)) as sdk:
        tool = openai.pydantic_function_tool(Forecast, name="weather")["function"]
        tools: Any = [{**WEATHER, "parameters": tool["parameters"]}]
        async with sdk.responses.stream(model="tiny", input="hi", tools=tools) as stream:
            done = [event async for event in stream if event.type == "response.function_call_arguments.done"]
            final = await stream.get_final_response()
    assert [event.arguments for event in done] == [ARGUMENTS] * 2
    assert [event.to_dict()["name"] for event in done] == ["weather"] * 2
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]


async def test_an_answer_ends_with_its_only_call(tmp_path: Path) -> None:
    backend = saying(tmp_path, ANSWERS["hermes"])
    answer = await whole(backend, input="hi", tools=[WEATHER], parallel_tool_calls=False)
    assert [item["type"] for item in answer["output"]] == ["message", "function_call"]
    assert (answer["status"], answer["parallel_tool_calls"]) == ("completed", False)


async def test_what_was_taken_out_of_an_input_may_be_put_back(tmp_path: Path) -> None:
    backend = ScriptedBackend(save_model_dir(tmp_path))
    put_before(backend, "redact_pii")
    async with client_of(backend) as client:
        chat = await ask(client, CHAT, chat_body(messages=[{"role": "user", "content": MAIL}], restore_redactions=True))
    hidden = await whole(backend, input=MAIL)
    shown = await whole(backend, input=MAIL, restore_redactions=True)
    assert "a@b.de" not in hidden["output"][0]["content"][0]["text"]
    assert shown["output"][0]["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert "a@b.de" in shown["output"][0]["content"][0]["text"]
