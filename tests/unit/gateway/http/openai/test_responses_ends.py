"""OpenAI's Responses API: how answers end that fail, are given up or take too long."""

import json
from pathlib import Path

import openai
import pytest

from serve_app.errors import RateLimitedError, RequestError, ShardLostError
from tests.fakes_serve import until
from tests.openai_calls import RESPONSES, ask, client_of
from tests.unit.gateway.http.openai.responses_calls import kinds, saying, sdk_of, streamed


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RateLimitedError("too much"), "rate_limit_exceeded"),
        (RequestError("too strange", field="input"), "invalid_prompt"),
        (ValueError("secret"), "server_error"),
    ],
)
async def test_errors_in_mid_stream_have_codes_of_openais(tmp_path: Path, error: Exception, code: str) -> None:
    backend = saying(tmp_path, "Well met, all of you.")
    backend.error, backend.fail_at_step = error, 3  # type: ignore[assignment]
    told = (await streamed(backend, input="hi"))[-1]["response"]["error"]
    assert told["code"] == code
    assert "secret" not in told["message"]


async def test_an_error_in_mid_stream_is_the_last_event(tmp_path: Path) -> None:
    backend = saying(tmp_path, "Well met, all of you.")
    backend.error, backend.fail_at_step = ShardLostError("shard 1 is gone"), 6
    events = await streamed(backend, input="hi")
    assert kinds(events)[-2:] == ["output_text.delta", "failed"]
    failed = events[-1]["response"]
    assert (failed["status"], failed["error"]) == ("failed", {"code": "server_error", "message": "shard 1 is gone"})
    said = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    (message,) = failed["output"]
    assert (message["status"], message["content"][0]["text"]) == ("incomplete", said)
    async with sdk_of(backend) as sdk:
        stream = await sdk.responses.create(model="tiny", input="hi", stream=True)
        assert [event.type async for event in stream][-1] == "response.failed"


async def test_an_error_before_the_first_event_is_a_plain_one(tmp_path: Path) -> None:
    backend = saying(tmp_path, "x")
    backend.error = ShardLostError("shard 1 is gone")
    async with sdk_of(backend) as sdk:
        for is_stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                await sdk.responses.create(model="tiny", input="hi", stream=is_stream)
            assert caught.value.status_code == 503
            assert caught.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_leaves_ends_the_generation(tmp_path: Path, is_stream: bool) -> None:
    backend = saying(tmp_path, "Well met. " * 40)
    backend.step_s = 0.002
    async with sdk_of(backend) as sdk:
        if is_stream:
            async with sdk.responses.stream(model="tiny", input="hi") as stream:
                await anext(event async for event in stream if event.type == "response.output_text.delta")
                assert backend.num_open == 1
        else:
            backend.step_s = 5
            with pytest.raises(openai.APITimeoutError):
                await sdk.responses.create(model="tiny", input="hi", timeout=0.1)
        await until(lambda: backend.num_open == 0)
    assert backend.num_aborted == 1


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_deadline_ends_the_generation(tmp_path: Path, is_stream: bool) -> None:
    backend = saying(tmp_path, "Well met. " * 40)
    backend.step_s = 0.02
    body = {"model": "tiny", "input": "hi", "stream": is_stream}
    async with client_of(backend) as client:
        response = await client.post(RESPONSES, json=body, headers={"x-request-timeout-ms": "150"})
    assert backend.num_aborted == 1
    if not is_stream:
        assert response.status_code == 504
        return
    last = json.loads(response.text.removesuffix("\n\n").split("\n\n")[-1].partition("data: ")[2])
    assert last["type"] == "response.failed"
    assert "longer than 0.15 s" in last["response"]["error"]["message"]


async def test_requests_are_counted_by_their_route(tmp_path: Path) -> None:
    backend = saying(tmp_path, "x")
    async with client_of(backend) as client:
        await ask(client, RESPONSES, {"model": "tiny", "input": "hi"})
        backend.error, backend.fail_at_step = ShardLostError("shard 1 is gone"), 1
        await client.post(RESPONSES, json={"model": "tiny", "input": "hi", "stream": True})
        lines = (await client.get("/metrics")).text.splitlines()
    all_counts = [line for line in lines if line.startswith("rayshard_requests_total{") and RESPONSES in line]
    counts = [line for line in all_counts if line.endswith(" 1.0")]
    assert sorted(line.split('status="')[1][:3] for line in counts) == ["2xx", "5xx"]
    assert all('model="tiny"' in line for line in counts)
