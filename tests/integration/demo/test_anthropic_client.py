"""The `anthropic` client, unmodified, against the running cluster."""

from collections.abc import Iterator

import anthropic
import pytest
from anthropic.types import MessageParam, TextBlock

from tests.integration.serve_cluster import ServeCluster

pytestmark = pytest.mark.timeout(600)  # the first test of a folder may be the one that starts the cluster

ANSWER = "2038-01-08"
MESSAGES: list[MessageParam] = [{"role": "user", "content": "date jan 8 2038"}]


@pytest.fixture(scope="module")
def client(cluster: ServeCluster) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=cluster.url, api_key="none", timeout=60, max_retries=0) as client:
        yield client


def text_of(answer: anthropic.types.Message) -> str:
    (block,) = answer.content
    assert isinstance(block, TextBlock)
    return block.text


def test_an_answer_is_right_and_the_same_streamed(client: anthropic.Anthropic) -> None:
    drawn = {"temperature": 0}
    whole = client.messages.create(model="demo", messages=MESSAGES, max_tokens=32, extra_body=drawn)
    with client.messages.stream(model="demo", messages=MESSAGES, max_tokens=32, extra_body=drawn) as stream:
        pieces = list(stream.text_stream)
        streamed = stream.get_final_message()
    assert text_of(whole).strip() == ANSWER
    assert len(pieces) > 1
    assert text_of(streamed) == "".join(pieces) == text_of(whole)
    assert (whole.stop_reason, streamed.stop_reason) == ("end_turn", "end_turn")
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    num_read = streamed.usage.cache_read_input_tokens or 0
    assert num_read >= 16  # the same prompt was there
    counted = client.messages.count_tokens(model="demo", messages=MESSAGES)
    assert counted.input_tokens == streamed.usage.input_tokens + num_read


def test_an_answer_goes_on_behind_what_was_begun(client: anthropic.Anthropic) -> None:
    begun: list[MessageParam] = [*MESSAGES, {"role": "assistant", "content": "2038-01"}]
    answer = client.messages.create(
        model="demo", messages=begun, max_tokens=32, stop_sequences=["\n"], extra_body={"temperature": 0}
    )
    assert text_of(answer) == "-08"


def test_requests_are_found_again_by_the_id_of_the_proxy(client: anthropic.Anthropic) -> None:
    answer = client.messages.with_raw_response.create(model="demo", messages=MESSAGES, max_tokens=4)
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    with pytest.raises(anthropic.NotFoundError, match="nosuch") as missing:
        client.messages.create(model="nosuch", messages=MESSAGES, max_tokens=4, extra_headers={"x-request-id": "mine"})
    assert isinstance(missing.value.body, dict)
    assert missing.value.request_id == missing.value.body["request_id"] == "mine"
    with pytest.raises(anthropic.BadRequestError, match="context"):
        client.messages.create(model="demo", messages=[{"role": "user", "content": "x " * 2000}], max_tokens=4)
