"""What answers of the Messages API hold, whole and streamed, as Anthropic's own client reads them."""

import json
from pathlib import Path
from typing import Any

import anthropic
import pytest

from serve_app.errors import ShardLostError
from tests.anthropic_calls import ASKED, MESSAGES, WEATHER, sdk_of
from tests.fakes import ScriptedBackend, say
from tests.openai_calls import client_of
from tests.unit.gateway.http.openai.test_tool_calls import ANSWERS, ARGUMENTS, BY_TEMPLATE, CALL, HERMES, backend_of

INPUT = json.loads(ARGUMENTS)
TOOLS: dict[str, Any] = {**ASKED, "max_tokens": 1000, "tools": [WEATHER]}


async def streamed(sdk: anthropic.AsyncAnthropic, asked: dict[str, Any]) -> anthropic.types.Message:
    """What the client's stream helper puts together."""
    async with sdk.messages.stream(**asked) as stream:
        message = await stream.get_final_message()
    assert isinstance(message, anthropic.types.Message)
    return message


async def both(sdk: anthropic.AsyncAnthropic, asked: dict[str, Any]) -> anthropic.types.Message:
    """The answer, which is the same whole and streamed but for ids."""
    whole: anthropic.types.Message = await sdk.messages.create(**asked)
    again = await streamed(sdk, asked)
    ids = {"id"}
    assert [block.model_dump(exclude=ids) for block in again.content] == [
        block.model_dump(exclude=ids) for block in whole.content
    ]
    assert (again.stop_reason, again.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert again.usage.to_dict() == whole.usage.to_dict()
    assert whole.id.startswith("msg_")
    assert whole.id != again.id
    return whole


async def test_a_text_is_one_block(sdk: anthropic.AsyncAnthropic, backend: ScriptedBackend) -> None:
    backend.script, backend.num_cached_tokens = say(*backend.ids("good day"), backend.eos_token_id), 3
    answer = await both(sdk, ASKED)
    (block,) = answer.content
    assert (block.type, answer.model, answer.role, answer.type) == ("text", "tiny", "assistant", "message")
    assert block.type == "text"
    assert block.text == "good day"
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    num_prompt = len(backend.requests[0].prompt_token_ids)
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (num_prompt - 3, 3)
    assert (usage.output_tokens, usage.cache_creation_input_tokens) == (len(backend.ids("good day")) + 1, 0)


@pytest.mark.parametrize(
    ("keys", "text", "reason", "sequence"),
    [
        ({"stop_sequences": ["END"]}, "one ", "stop_sequence", "END"),
        ({"stop_sequences": ["|", "two"]}, "one END ", "stop_sequence", "two"),
        ({"max_tokens": 3}, None, "max_tokens", None),
        ({"max_tokens": 20_000}, "one END two", "end_turn", None),
    ],
)
async def test_why_an_answer_has_ended_is_told(
    sdk: anthropic.AsyncAnthropic,
    backend: ScriptedBackend,
    keys: dict[str, Any],
    text: str | None,
    reason: str,
    sequence: str | None,
) -> None:
    backend.script = say(*backend.ids("one END two"), backend.eos_token_id)
    answer = await both(sdk, {**ASKED, **keys})
    (block,) = answer.content
    assert block.type == "text"
    assert block.text == (text or backend.text(backend.ids("one END two")[:3]))
    assert (answer.stop_reason, answer.stop_sequence) == (reason, sequence)


async def test_an_answer_that_fills_the_context_says_so(
    sdk: anthropic.AsyncAnthropic, backend: ScriptedBackend
) -> None:
    backend.max_model_len = 64
    answer = await both(sdk, {**ASKED, "max_tokens": 200})
    assert answer.stop_reason == "model_context_window_exceeded"
    assert answer.usage.input_tokens + answer.usage.output_tokens == 64


async def test_no_token_is_given_where_the_prompt_is_only_read(
    sdk: anthropic.AsyncAnthropic, backend: ScriptedBackend
) -> None:
    answer = await both(sdk, {**ASKED, "max_tokens": 0})
    assert (answer.content, answer.stop_reason, answer.usage.output_tokens) == ([], "max_tokens", 0)
    assert len(backend.requests) == 2


@pytest.mark.parametrize("tool_format", ANSWERS)
@pytest.mark.parametrize("num_merged", [1, 7, 1000])
async def test_calls_are_blocks_behind_the_text(tmp_path: Path, tool_format: str, num_merged: int) -> None:
    backend = backend_of(tmp_path, BY_TEMPLATE[tool_format], ANSWERS[tool_format])
    backend.max_steps_in_chunk, backend.is_merged = num_merged, True
    async with sdk_of(backend) as sdk:
        answer = await both(sdk, TOOLS)
    texts = [] if tool_format == "json" else ["Well."]
    assert answer.stop_reason == "tool_use"
    assert [block.text for block in answer.content if block.type == "text"] == texts
    calls = [block for block in answer.content if block.type == "tool_use"]
    assert [(call.name, call.input) for call in calls] == [("weather", INPUT)] * 2
    assert len({call.id for call in calls}) == 2


@pytest.mark.parametrize("num_merged", [1, 3, 10, 1000])
async def test_a_call_is_whole_though_a_text_follows_it(tmp_path: Path, num_merged: int) -> None:
    backend = backend_of(tmp_path, answer=f"a <tool_call>{CALL}</tool_call> b <tool_call>{CALL}</tool_call> c")
    backend.max_steps_in_chunk, backend.is_merged = num_merged, True
    async with sdk_of(backend) as sdk:
        answer = await both(sdk, TOOLS)
    assert [block.input for block in answer.content if block.type == "tool_use"] == [INPUT] * 2
    assert [block.text.strip() for block in answer.content if block.type == "text"] == ["a", "b", "c"]
    assert [block.type for block in answer.content] == ["text", "tool_use", "text", "tool_use", "text"]


async def test_the_input_is_streamed_while_it_is_written(tmp_path: Path) -> None:
    pieces = []
    async with sdk_of(backend_of(tmp_path)) as sdk, sdk.messages.stream(**TOOLS) as stream:
        async for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "input_json_delta":
                pieces.append(event.delta.partial_json)
    assert "".join(pieces) == ARGUMENTS * 2
    assert len(pieces) > len(ARGUMENTS), "tokens are about a character long here"


async def test_a_call_that_breaks_off_is_not_lost(tmp_path: Path) -> None:
    async with sdk_of(backend_of(tmp_path)) as sdk:
        answer = await sdk.messages.create(**{**TOOLS, "max_tokens": 40})
    call = answer.content[-1]
    assert call.type == "tool_use"
    assert answer.stop_reason == "max_tokens"
    assert ARGUMENTS.startswith(str(call.input["INVALID_JSON"]))


async def test_a_stop_sequence_in_a_call_is_named(tmp_path: Path) -> None:
    async with sdk_of(backend_of(tmp_path)) as sdk:
        answer = await sdk.messages.create(**TOOLS, stop_sequences=["Köln"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "Köln")


async def test_one_call_ends_an_answer_that_may_have_no_more(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    async with sdk_of(backend) as sdk:
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        answer = await both(sdk, {**TOOLS, "tool_choice": choice})
    assert [block.type for block in answer.content] == ["text", "tool_use"]
    assert (answer.stop_reason, backend.num_aborted) == ("tool_use", 2)


async def test_reasoning_is_a_block_of_thinking(tmp_path: Path) -> None:
    answer = f"<think>\nShall I?\n</think>\n\nYes.<tool_call>{CALL}</tool_call>"
    backend = backend_of(tmp_path, HERMES, answer)
    async with sdk_of(backend) as sdk:
        shown = await both(sdk, {**TOOLS, "thinking": {"type": "adaptive"}})
        empty = await both(sdk, {**TOOLS, "thinking": {"type": "adaptive", "display": "omitted"}})
        hidden = await both(sdk, {**TOOLS, "thinking": {"type": "disabled"}})
        unsaid = await both(sdk, TOOLS)
    for one, thought in ((shown, "Shall I?"), (empty, ""), (unsaid, "Shall I?")):
        assert [block.type for block in one.content] == ["thinking", "text", "tool_use"]
        assert one.content[0].type == "thinking"
        assert (one.content[0].thinking, one.content[0].signature) == (thought, "unsigned")
    assert [block.type for block in hidden.content] == ["text", "tool_use"]


async def test_an_answer_goes_into_the_next_request_as_it_came(tmp_path: Path) -> None:
    backend = backend_of(tmp_path, HERMES, f"<think>\nhm\n</think>\n\nWell.<tool_call>{CALL}</tool_call>")
    async with sdk_of(backend) as sdk:
        first = await sdk.messages.create(**TOOLS)
        result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": "rain"}
        turns = [*ASKED["messages"], first.to_param(), {"role": "user", "content": [result]}]
        await sdk.messages.create(**{**TOOLS, "messages": turns})
    shown = backend._tokenizer.decode(backend.requests[1].prompt_token_ids, False)
    history = "<user>hello<assistant><think>hm</think>Well.<tool_call>weather,city=Köln,days=2</tool_call><tool>rain"
    assert shown.endswith(f"{history}<assistant>")


async def test_events_come_by_name_and_in_order(backend: ScriptedBackend) -> None:
    backend.script = say(*backend.ids("so\u2028on"), backend.eos_token_id)
    async with client_of(backend) as client:
        response = await client.post(MESSAGES, json={**ASKED, "stream": True})
    events = [event.split("\n") for event in response.text.removesuffix("\n\n").split("\n\n")]
    names = [name.removeprefix("event: ") for name, _data in events]
    contents = [json.loads(data.removeprefix("data: ")) for _name, data in events]
    assert names == [content["type"] for content in contents]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert contents[0]["message"]["usage"]["output_tokens"] == 0
    assert contents[0]["message"]["stop_reason"] is None
    assert "".join(content["delta"]["text"] for content in contents[3:-3]) == "so\u2028on"


async def test_an_error_ends_a_stream_that_has_begun(sdk: anthropic.AsyncAnthropic, backend: ScriptedBackend) -> None:
    backend.error, backend.fail_at_step = ShardLostError("a shard was lost", retry_after_s=1.0), 3
    texts: list[str] = []

    async def read() -> None:
        async with sdk.messages.stream(**ASKED, extra_headers={"x-request-id": "abc"}) as stream:
            async for text in stream.text_stream:
                texts.append(text)

    with pytest.raises(anthropic.APIStatusError) as told:
        await read()
    assert texts
    assert (told.value.type, told.value.request_id) == ("overloaded_error", "abc")
    assert told.value.body == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "a shard was lost"},
        "request_id": "abc",
    }


async def test_a_structured_answer_is_parsed_by_the_client(
    sdk: anthropic.AsyncAnthropic, backend: ScriptedBackend
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    backend.script = say(*backend.ids('{"a": 1}'), backend.eos_token_id)
    config: Any = {"format": {"type": "json_schema", "schema": schema}}
    answer = await sdk.messages.create(**ASKED, output_config=config)
    assert [block.text for block in answer.content if block.type == "text"] == ['{"a": 1}']
    assert "a" in (backend.requests[0].params.grammar or "")
