"""The `openai` client, unmodified, against the running cluster."""

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.integration.serve_cluster import ServeCluster

pytestmark = pytest.mark.timeout(600)  # the first test of a folder may be the one that starts the cluster

DATE = "date jan 8 2038 ="
ANSWER = "2038-01-08"


@pytest.fixture(scope="module")
def client(cluster: ServeCluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", timeout=60, max_retries=0)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "rayshard"


def test_a_completion_is_right_and_counted(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=DATE, temperature=0, max_tokens=32)
    assert answer.choices[0].text.strip() == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens >= len(ANSWER)


def test_several_prompts_answer_in_order(client: openai.OpenAI) -> None:
    prompts = [f"date jan {day} 2038 =" for day in (8, 9, 10)]
    answer = client.completions.create(model="demo", prompt=prompts, temperature=0, max_tokens=32)
    assert [choice.text.strip() for choice in answer.choices] == ["2038-01-08", "2038-01-09", "2038-01-10"]


def test_a_chat_answers_and_streams_the_same(client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "date jan 8 2038"}]
    whole = client.chat.completions.create(model="demo", messages=messages, temperature=0, max_tokens=32)
    assert (whole.choices[0].message.content or "").strip() == ANSWER
    stream = client.chat.completions.create(
        model="demo",
        messages=messages,
        temperature=0,
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    for chunk in stream:
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage is not None
    assert whole.usage is not None
    assert usage.prompt_tokens_details is not None
    assert 16 <= (usage.prompt_tokens_details.cached_tokens or 0) < usage.prompt_tokens  # the same prompt was there
    not_counted = {"prompt_tokens_details"}
    assert usage.model_dump(exclude=not_counted) == whole.usage.model_dump(exclude=not_counted)


def test_choices_differ_by_seed_and_repeat_with_it(client: openai.OpenAI) -> None:
    def draw(seed: int) -> list[str]:
        answer = client.completions.create(
            model="demo", prompt="once upon", temperature=2.0, max_tokens=24, n=2, seed=seed
        )
        return [choice.text for choice in answer.choices]

    first, again, other = draw(7), draw(7), draw(8)
    assert first == again
    assert first != other
    assert first[0] != first[1]


def test_logprobs_come_with_their_alternatives(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=DATE, temperature=0, max_tokens=4, logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert len(logprobs.token_logprobs) == 4
    assert all(-0.7 < value <= 0 for value in logprobs.token_logprobs)
    assert all(len(top) == 3 for top in logprobs.top_logprobs)


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=DATE, temperature=0, max_tokens=32, stop=["-01"])
    assert answer.choices[0].text.strip() == "2038"
    assert answer.choices[0].finish_reason == "stop"


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nosuch"):
        client.completions.create(model="nosuch", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="demo", prompt="x", temperature=9)
    with pytest.raises(openai.BadRequestError, match="1024"):
        client.completions.create(model="demo", prompt="x " * 2000)
    answer = client.completions.create(model="demo", prompt=DATE, temperature=0, max_tokens=32)
    assert answer.choices[0].text.strip() == ANSWER


def test_a_response_answers_and_streams_the_same(client: openai.OpenAI) -> None:
    asked = "date jan 8 2038"
    whole = client.responses.create(model="demo", input=asked, temperature=0, max_output_tokens=32)
    assert (whole.output_text.strip(), whole.status) == (ANSWER, "completed")
    with client.responses.stream(model="demo", input=asked, temperature=0, max_output_tokens=32) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text
    assert whole.usage is not None
    assert final.usage is not None
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens_details.cached_tokens >= 16
    with pytest.raises(openai.NotFoundError, match="responses are not kept here"):
        client.responses.retrieve(whole.id)
