"""What Anthropic's client builds upon the Messages API, and what a Gateway does around every call of it."""

from pathlib import Path
from typing import Any

import anthropic
import pydantic
import pytest
from anthropic import beta_async_tool
from prometheus_client.parser import text_string_to_metric_families

from serve_app.gateway.key_file import new_key
from tests.anthropic_calls import ASKED, sdk_of
from tests.fakes import ScriptedBackend, save_model_dir, say
from tests.unit.gateway.http.openai.test_tool_calls import CALL, backend_of
from tests.unit.gateway.http.test_chain_routes import put_before


class Count(pydantic.BaseModel):
    """What an answer is parsed to."""

    count: int


async def test_a_tool_runner_goes_from_call_to_answer(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    answers = {1: f"Well.<tool_call>{CALL}</tool_call>", 2: "Rain."}
    backend.script = lambda _request, _choice: [*backend.ids(answers[len(backend.requests)]), backend.eos_token_id]

    @beta_async_tool
    async def weather(city: str, days: int) -> str:
        """The forecast."""
        return f"{city}: rain on {days} days"

    async with sdk_of(backend) as sdk:
        runner = sdk.beta.messages.tool_runner(**ASKED, tools=[weather])
        last = await runner.until_done()
    assert [block.text for block in last.content if block.type == "text"] == ["Rain."]
    shown = backend._tokenizer.decode(backend.requests[-1].prompt_token_ids, False)
    assert shown.endswith("Well.<tool_call>weather,city=Köln,days=2</tool_call><tool>Köln: rain on 2 days<assistant>")


async def test_threads_are_refused_in_a_way_that_clients_understand(sdk: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as told:
        await sdk.beta.messages.create(**ASKED, thread={"type": "create"})
    assert told.value.error_code == "thread_unsupported_request"


async def test_an_answer_is_parsed_to_a_model_of_pydantics(
    sdk: anthropic.AsyncAnthropic, backend: ScriptedBackend
) -> None:
    backend.script = say(*backend.ids('{"count": 3}'), backend.eos_token_id)
    answer = await sdk.messages.parse(**ASKED, output_format=Count)
    assert answer.parsed_output == Count(count=3)
    assert "count" in (backend.requests[0].params.grammar or "")


async def test_models_are_listed(sdk: anthropic.AsyncAnthropic) -> None:
    assert [model.id async for model in sdk.models.list()] == ["tiny"]


async def test_a_conversation_goes_through_the_models_steps(tmp_path: Path) -> None:
    backend = ScriptedBackend(save_model_dir(tmp_path))
    put_before(backend, "redact_pii")
    asked: dict[str, Any] = {**ASKED, "messages": [{"role": "user", "content": "I am a@b.de"}], "system": "Not c@d.fr"}
    backend.script = say(*backend.ids("Hi, <EMAIL_2>"), backend.eos_token_id)
    async with sdk_of(backend) as sdk:
        shown = await sdk.messages.create(**asked)
        restored = await sdk.messages.create(**asked, extra_body={"restore_redactions": True})
        del asked["max_tokens"]
        counted = await sdk.messages.count_tokens(**asked)
    assert "[system]Not <EMAIL_1>" in backend.text(backend.requests[0].prompt_token_ids)
    texts = [block.text for answer in (shown, restored) for block in answer.content if block.type == "text"]
    assert texts == ["Hi, <EMAIL_2>", "Hi, a@b.de"]
    assert counted.input_tokens == len(backend.requests[0].prompt_token_ids)


async def test_limits_of_a_key_are_told_in_this_apis_shape(tmp_path: Path, backend: ScriptedBackend) -> None:
    key, line = new_key("name=me requests_per_minute=2 tokens_per_minute=100")
    (tmp_path / "keys").write_text(f"{line}\n")
    async with sdk_of(backend, key, api_keys_file=str(tmp_path / "keys")) as sdk:
        with pytest.raises(anthropic.RateLimitError) as never:
            await sdk.messages.create(**ASKED)
        await sdk.messages.create(**{**ASKED, "max_tokens": 5})
        with pytest.raises(anthropic.RateLimitError) as later:
            await sdk.messages.create(**{**ASKED, "max_tokens": 5})
    assert (never.value.type, never.value.response.headers["x-should-retry"]) == ("rate_limit_error", "false")
    assert later.value.type == "rate_limit_error"
    assert int(later.value.response.headers["retry-after"]) > 1
    assert len(backend.requests) == 1


async def test_calls_are_counted_by_their_route(sdk: anthropic.AsyncAnthropic) -> None:
    await sdk.messages.create(**ASKED)
    await sdk.messages.count_tokens(model="tiny", messages=ASKED["messages"])
    with pytest.raises(anthropic.BadRequestError):
        await sdk.messages.create(**{**ASKED, "messages": []})
    text = await sdk.get("/metrics", cast_to=str)
    counts = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "rayshard_requests_total" and sample.value
    }
    assert counts == {("/v1/messages", "2xx"): 1, ("/v1/messages", "4xx"): 1, ("/v1/messages/count_tokens", "2xx"): 1}
