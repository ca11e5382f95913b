"""OpenAI's Responses API: what of a request reaches the model, and its template."""

from pathlib import Path
from typing import Any

from tests.openai_calls import CHAT, ask, client_of
from tests.unit.gateway.http.openai.responses_calls import THOUGHT, WEATHER, saying, sdk_of, whole
from tests.unit.gateway.http.openai.test_tool_calls import ARGUMENTS, CALL, HERMES, backend_of


async def test_a_history_is_shown_as_that_of_a_chat(tmp_path: Path) -> None:
    backend = saying(tmp_path, THOUGHT)
    function = {"name": "weather", "arguments": ARGUMENTS}
    async with client_of(backend) as client, sdk_of(backend) as sdk:
        first = await sdk.responses.create(model="tiny", input="hi", tools=[WEATHER])  # type: ignore[list-item]
        calls = [item for item in first.output if item.type == "function_call"]
        outputs = [{"type": "function_call_output", "call_id": one.call_id, "output": "rain"} for one in calls]
        history: Any = [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            *first.output,
            *outputs,
            {"type": "message", "role": "user", "content": "and?"},
        ]
        await sdk.responses.create(
            model="tiny",
            input=history,
            instructions="Be brief.",
            tools=[WEATHER],  # type: ignore[list-item]
        )
        tool = {name: value for name, value in WEATHER.items() if name not in ("type", "strict")}
        asked = {
            "model": "tiny",
            "tools": [{"type": "function", "function": tool}],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "content": "Well.",
                    "reasoning_content": "Shall I?",
                    "tool_calls": [{"id": one.call_id, "type": "function", "function": function} for one in calls],
                },
                *({"role": "tool", "tool_call_id": one.call_id, "content": "rain"} for one in calls),
                {"role": "user", "content": "and?"},
            ],
        }
        await ask(client, CHAT, asked)
    _, by_responses, by_chat = backend.requests
    assert by_responses.prompt_token_ids == by_chat.prompt_token_ids


async def test_messages_of_the_assistant_stay_apart(tmp_path: Path) -> None:
    backend = saying(tmp_path, "x")
    call = {"type": "function_call", "name": "weather", "arguments": ARGUMENTS, "call_id": "c"}
    history = [
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "two"}]},
        call,
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "three"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "four"}]},
        {"type": "reasoning", "summary": []},
        {"role": "developer", "content": "five"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "six"}]},
    ]
    await whole(backend, input=history, tools=[WEATHER], tool_choice="none")
    assert backend._tokenizer.decode(backend.requests[0].prompt_token_ids, False) == (
        "<assistant>one<assistant>two<tool_call>weather,city=Köln,days=2</tool_call><assistant>three"
        "<assistant><think>four</think><system>five<tool>six<assistant>"
    )


async def test_a_call_may_be_asked_for(tmp_path: Path) -> None:
    backend = saying(tmp_path, f"[{CALL}]")
    now = {"type": "function", "name": "now", "strict": True, "parameters": None}
    strict = {**WEATHER, "strict": True}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
    for choice in ("required", {"type": "function", "name": "weather"}, allowed):
        answer = await whole(backend, input="hi", tools=[now, strict], tool_choice=choice)
        assert answer["tool_choice"] == choice
        assert [tool["name"] for tool in answer["tools"]] == ["now", "weather"]
        assert [item["type"] for item in answer["output"]] == ["function_call"]
    required, one, some = (request.params.grammar or "" for request in backend.requests)
    assert "now" in required
    assert "now" not in one
    assert "now" not in some
    shown = backend._tokenizer.decode(backend.requests[2].prompt_token_ids, False)
    assert "weather" in shown
    assert "now" not in shown


async def test_sampling_and_names_reach_the_model(tmp_path: Path) -> None:
    backend = saying(tmp_path, "x")
    keys: dict[str, Any] = {"temperature": 0.5, "top_p": 0.25, "seed": 7, "top_k": 3, "priority": -2, "min_tokens": 1}
    shown = {"prompt_cache_key": "k", "user": "u", "safety_identifier": "s", "metadata": {"a": "b"}}
    answer = await whole(backend, input="hi", max_output_tokens=9, **keys, **shown)
    await whole(backend, input="hi")
    first, second = backend.requests
    params = first.params
    assert (params.temperature, params.top_p, params.seed, params.top_k) == (0.5, 0.25, 7, 3)
    assert (params.max_tokens, params.min_tokens, first.priority) == (9, 1, -2)
    assert first.session
    assert first.session != second.session
    assert {name: answer[name] for name in shown} == shown
    assert (answer["temperature"], answer["top_p"]) == (0.5, 0.25)


async def test_effort_reaches_the_template(tmp_path: Path) -> None:
    backend = backend_of(tmp_path, HERMES + "{{ reasoning_effort }}", "x")
    answer = await whole(backend, input="hi", reasoning={"effort": "low", "summary": "auto"})
    assert backend.text(backend.requests[0].prompt_token_ids).endswith("<assistant>low")
    assert answer["reasoning"] == {"effort": "low", "summary": "auto"}
