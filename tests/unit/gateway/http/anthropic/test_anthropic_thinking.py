"""A budget of thinking: reasoning that has used it up is closed, and the answer goes on."""

from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.anthropic_calls import ASKED, WEATHER, sdk_of
from tests.fakes import ScriptedBackend
from tests.unit.gateway.http.anthropic.test_anthropic_answers import both
from tests.unit.gateway.http.openai.test_tool_calls import CALL, HERMES, backend_of

THOUGHT = "".join(f"thought {number} " for number in range(30))
BEGUN = HERMES.replace("<assistant>{% endif %}", "<assistant><think>\n{% endif %}")
CLOSED = "\n</think>\n\n"


def thinking_backend(directory: Path, thought: str, answer: str = "Yes.", template: str = HERMES) -> ScriptedBackend:
    """A model that thinks `thought`, and answers as soon as its thinking is closed."""
    backend = backend_of(directory, template)
    end = backend.ids(CLOSED)

    def script(request: Any, _choice: int) -> list[int]:
        behind = answer if request.prompt_token_ids[-len(end) :] == end else f"{thought}</think>{answer}"
        return [*backend.ids(behind), backend.eos_token_id]

    backend.script = script
    return backend


def with_budget(num_tokens: int, **keys: Any) -> dict[str, Any]:
    return {**ASKED, "max_tokens": 1000, "thinking": {"type": "enabled", "budget_tokens": num_tokens}, **keys}


@pytest.mark.parametrize("num_merged", [1, 7, 1000])
@pytest.mark.parametrize(("begin", "template"), [("<think>\n", HERMES), ("", BEGUN)])
async def test_thinking_ends_with_its_budget(tmp_path: Path, num_merged: int, begin: str, template: str) -> None:
    backend = thinking_backend(tmp_path, begin + THOUGHT, template=template)
    backend.max_steps_in_chunk, backend.is_merged, backend.num_cached_tokens = num_merged, True, 5
    async with sdk_of(backend) as sdk:
        answer = await both(sdk, with_budget(20))
    drawn, closing = backend.ids(begin + THOUGHT)[:20], backend.ids(CLOSED)
    thinking, text = answer.content
    assert thinking.type == "thinking"
    assert thinking.thinking == backend._tokenizer.decode(drawn, False).removeprefix(begin).rstrip()
    assert text.type == "text"
    assert (text.text, answer.stop_reason) == ("Yes.", "end_turn")
    first, second = backend.requests[:2]
    assert second.prompt_token_ids == [*first.prompt_token_ids, *drawn, *closing]
    assert second.params.max_tokens == 1000 - 20 - len(closing)
    assert second.params.seed != first.params.seed
    assert second.request_id != first.request_id
    assert answer.usage.output_tokens == 20 + len(closing) + len(backend.ids("Yes.")) + 1
    assert answer.usage.cache_read_input_tokens == 5
    assert answer.usage.input_tokens == len(first.prompt_token_ids) - 5
    assert (backend.num_open, len(backend.requests)) == (0, 4)


@pytest.mark.parametrize("thought", ["<think>\nhm", " \n<think>hm", "none: <think> is no beginning here " * 3])
async def test_an_answer_within_its_budget_is_one_request(tmp_path: Path, thought: str) -> None:
    backend = thinking_backend(tmp_path, thought)
    async with sdk_of(backend) as sdk:
        answer = await both(sdk, with_budget(40))
    assert (len(backend.requests), backend.num_aborted, answer.stop_reason) == (2, 0, "end_turn")


async def test_calls_follow_thinking_that_was_closed(tmp_path: Path) -> None:
    backend = thinking_backend(tmp_path, f"<think>{THOUGHT}", f"<tool_call>{CALL}</tool_call>")
    async with sdk_of(backend) as sdk:
        answer = await both(sdk, with_budget(20, tools=[WEATHER]))
    assert [block.type for block in answer.content] == ["thinking", "tool_use"]
    assert answer.stop_reason == "tool_use"


@pytest.mark.parametrize(("max_tokens", "num_requests"), [(21, 2), (40, 2), (3, 1)])
async def test_max_tokens_holds_with_thinking(tmp_path: Path, max_tokens: int, num_requests: int) -> None:
    backend = thinking_backend(tmp_path, f"<think>{THOUGHT}", THOUGHT)
    async with sdk_of(backend) as sdk:
        answer = await sdk.messages.create(**with_budget(min(20, max_tokens - 1), max_tokens=max_tokens))
    assert (answer.usage.output_tokens, answer.stop_reason) == (max_tokens, "max_tokens")
    assert len(backend.requests) == num_requests


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens is missing"),
        ({"tools": [{**WEATHER, "strict": True}]}, "does not go with strict tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 200}}, "leaves nothing of max_tokens=200"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens=0"),
        ({"tools": [WEATHER], "tool_choice": {"type": "any"}}, "does not go with tool_choice.type=any"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "does not go with output_config.format"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_budget_that_cannot_be_kept_is_refused(
    tool_sdk: anthropic.AsyncAnthropic, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as told:
        await tool_sdk.messages.create(**{**with_budget(20, max_tokens=200), **keys})
    assert words in (told.value.api_message or "")


async def test_a_model_without_reasoning_has_no_budget(sdk: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="writes no reasoning"):
        await sdk.messages.create(**with_budget(20))
