"""The HTTP side on a real socket: streams, clients that leave or do not read, failures, the openai client."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from ray.serve._private.http_util import RequestIdMiddleware

from serve_app.backend.protocol import Newcomer
from serve_app.config.gateway import GatewayConfig
from serve_app.errors import QueueFullError, RayshardError, ShardLostError, UnavailableError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.http.sse import Outbox
from serve_app.types.models import ModelDescription
from tests.fakes import NO_TLS, ScriptedBackend, echo_prompt, say, serving

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest_asyncio.fixture
async def server(backend: ScriptedBackend) -> AsyncIterator[str]:
    config = GatewayConfig(client_buffer_tokens=100)
    async with serving(build_http_app(DataPlane(backend, config))) as base_url:
        yield base_url


@pytest_asyncio.fixture
async def hasty_client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    """Of a server that gives a request a second."""
    async with (
        serving(build_http_app(DataPlane(backend, GatewayConfig(request_timeout_s=1)))) as base_url,
        httpx.AsyncClient(verify=NO_TLS, base_url=base_url, timeout=20) as client,
    ):
        yield client


@pytest_asyncio.fixture
async def client(server: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(verify=NO_TLS, base_url=server, timeout=20) as client:
        yield client


@pytest_asyncio.fixture
async def openai_client(server: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client


def prompt_body(**keys: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": [64, 65], **keys}


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.01)


async def raw_request(base_url: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request on a socket of our own, so that we can stop reading."""
    host, _, port = base_url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    content = json.dumps(body).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()
    return reader, writer


# Streams


async def test_tokens_arrive_one_by_one(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.step_s = 0.05
    times = []
    async with client.stream("POST", COMPLETIONS, json=prompt_body(stream=True, max_tokens=6)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for _ in response.aiter_lines():
            times.append(time.monotonic())
    assert times[-1] - times[0] > 0.15


async def test_a_client_that_leaves_ends_its_request_at_once(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.step_s = 60  # no token flows while it leaves
    async with client.stream("POST", COMPLETIONS, json=prompt_body(stream=True, max_tokens=50)) as response:
        await anext(response.aiter_lines())
        assert backend.num_open == 1
    await until(lambda: backend.num_open == 0)
    assert backend.num_aborted == 1


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_leaves_before_the_first_token_ends_its_request(
    server: str, backend: ScriptedBackend, is_stream: bool
) -> None:
    backend.first_step_s = 60
    _reader, writer = await raw_request(server, prompt_body(stream=is_stream, max_tokens=5))
    await until(lambda: backend.num_open == 1)
    writer.close()
    await until(lambda: backend.num_open == 0)
    assert backend.num_aborted == 1


async def test_a_client_that_does_not_read_is_aborted_and_others_are_not(
    server: str, client: httpx.AsyncClient, backend: ScriptedBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="uvicorn.error")  # an answer without an end is what we want
    backend.max_model_len = 100_000
    backend.max_steps_in_chunk = 64
    _reader, writer = await raw_request(server, prompt_body(stream=True, max_tokens=90_000, n=4, logprobs=5))
    await until(lambda: backend.num_open == 1)
    answer = await client.post(COMPLETIONS, json=prompt_body(max_tokens=3))
    assert answer.status_code == 200
    await until(lambda: backend.num_open == 0)
    assert backend.num_aborted == 1
    assert (await client.post(COMPLETIONS, json=prompt_body(max_tokens=3))).status_code == 200
    writer.transport.abort()


async def test_what_waits_is_sent_as_one_piece() -> None:
    outbox = Outbox(10)
    outbox.put(b"a", 5)
    outbox.put(b"b", 50)  # nobody was slow: the writer had no turn yet
    outbox.close()
    assert [await outbox.take(), await outbox.take()] == [b"ab", b""]


async def test_many_streams_get_their_own_tokens(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.step_s = 0.001

    async def one(index: int) -> str:
        response = await client.post(COMPLETIONS, json=prompt_body(prompt=[64 + index], stream=True, max_tokens=20))
        pieces = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
        return "".join(piece["choices"][0]["text"] for piece in pieces)

    texts = await asyncio.gather(*(one(index) for index in range(26)))
    assert texts == [chr(ord("a") + index) * 20 for index in range(26)]


# Failures


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry_after"),
    [
        (QueueFullError("full", retry_after_s=2.5), 429, "rate_limit_error", "3"),
        (UnavailableError("no copy"), 503, "service_unavailable", "1"),
        (ShardLostError("shard 1 died"), 503, "shard_lost", "1"),
    ],
)
@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_failure_before_the_first_token_is_an_http_error(
    client: httpx.AsyncClient,
    backend: ScriptedBackend,
    error: RayshardError,
    status: int,
    kind: str,
    retry_after: str,
    is_stream: bool,
) -> None:
    backend.error = error
    response = await client.post(COMPLETIONS, json=prompt_body(stream=is_stream))
    assert response.status_code == status
    assert response.headers["retry-after"] == retry_after
    assert response.json()["error"] == {"message": error.message, "type": kind, "param": None, "code": kind}
    assert backend.num_open == 0


async def test_a_failure_in_a_stream_is_its_last_event(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.error, backend.fail_at_step = ShardLostError("shard 1 died"), 3
    response = await client.post(COMPLETIONS, json=prompt_body(stream=True))
    assert response.status_code == 200
    received = [json.loads(line[6:]) for line in response.text.split("\n\n") if line]
    assert [next(iter(event)) for event in received] == ["id", "id", "id", "error"]
    assert received[-1]["error"]["type"] == "shard_lost"


async def test_one_failing_prompt_ends_the_others(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.error, backend.fail_at_step = ShardLostError("shard 1 died"), 3
    response = await client.post(COMPLETIONS, json=prompt_body(prompt=["a", "b", "c"]))
    assert response.status_code == 503
    assert backend.num_open == 0


async def test_a_request_that_takes_too_long_gets_504(
    hasty_client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.first_step_s = 60
    response = await hasty_client.post(COMPLETIONS, json=prompt_body())
    assert response.status_code == 504
    assert "request_timeout_s" in response.json()["error"]["message"]
    assert (backend.num_open, backend.num_aborted) == (0, 1)


async def test_a_stream_that_takes_too_long_ends_with_an_error(
    hasty_client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.first_step_s, backend.step_s = 0.0, 60
    response = await hasty_client.post(COMPLETIONS, json=prompt_body(stream=True, max_tokens=100))
    last = json.loads(response.text.split("\n\n")[-2][6:])
    assert last["error"]["type"] == "timeout_error"
    assert backend.num_aborted == 1


@pytest.mark.parametrize("is_stream", [True, False])
async def test_tokens_that_end_early_or_leave_a_gap_are_an_error(
    client: httpx.AsyncClient, backend: ScriptedBackend, is_stream: bool
) -> None:
    backend.script = say()  # ends without having begun
    assert (await client.post(COMPLETIONS, json=prompt_body(stream=is_stream))).status_code == 500
    backend.script, backend.lost_step = echo_prompt, 2
    response = await client.post(COMPLETIONS, json=prompt_body(stream=is_stream))
    assert "tokens were lost before token 3 of choice 0" in response.text
    assert backend.num_open == 0


async def test_a_fault_of_ours_shows_no_details(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    def broken(_request: object, _choice: int) -> list[int]:
        raise RuntimeError("secret")

    backend.script = broken
    for is_stream in (True, False):
        response = await client.post(COMPLETIONS, json=prompt_body(stream=is_stream))
        assert response.status_code == 500
        assert "secret" not in response.text
        assert response.json()["error"]["type"] == "internal_error"


async def test_a_missing_tokenizer_fails_only_its_own_model(
    client: httpx.AsyncClient, backend: ScriptedBackend, tmp_path: Path
) -> None:
    backend.extra_models = [
        ModelDescription("broken", "generate", str(tmp_path), 64, 64, 100, [1], 0),
        ModelDescription("tickets", "classify", str(tmp_path), 64, 64, 100, [1], 0),
    ]
    assert (await client.post(COMPLETIONS, json=prompt_body(model="broken"))).status_code == 500
    assert (await client.post(COMPLETIONS, json=prompt_body(model="tickets"))).status_code == 400
    assert (await client.post(COMPLETIONS, json=prompt_body())).status_code == 200
    unnamed = await client.post(COMPLETIONS, json={"prompt": "a"})
    assert unnamed.json()["error"]["param"] == "model"


# Other routes


async def test_health_follows_the_backend(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    response = await client.get("/health")
    assert (response.status_code, response.json()["status"]) == (200, "ok")
    assert response.json()["models"]["tiny"][0]["state"] == "ready"
    assert "newcomers" not in response.json()
    backend.newcomers = {"new": Newcomer("starting", ""), "bad": Newcomer("failed", "\x1b[31mno module at 10.0.0.7:80")}
    response = await client.get("/health")
    assert (response.status_code, response.json()["num_starting"]) == (200, 1)
    assert response.json()["newcomers"]["bad"] == {"state": "failed", "detail": "no module at …"}
    backend.is_healthy = False
    response = await client.get("/health")
    assert (response.status_code, response.json()["detail"]) == (503, "shard 1 is gone")


async def test_a_model_that_sleeps_is_no_outage_anywhere(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    assert "asleep" not in (await client.get("/health")).json()
    backend.is_asleep = True
    response = await client.get("/health")
    assert (response.status_code, response.json()["asleep"], response.json()["models"]) == (200, ["tiny"], {"tiny": []})
    assert response.json()["detail"] == "tiny: asleep"
    assert (await client.get("/v2/models/tiny/ready")).status_code == 200
    lines = (await client.get("/metrics")).text.splitlines()
    ready = [float(line.split()[-1]) for line in lines if line.startswith("rayshard_model_ready{")]
    assert ready == [1.0]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nope", 404), ("GET", "/health/", 404), ("GET", COMPLETIONS, 405)]
)
async def test_wrong_paths_and_methods_get_openais_error_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/models", "/nope", COMPLETIONS])
async def test_behind_serves_proxy_the_request_id_stands_once(backend: ScriptedBackend, path: str) -> None:
    app = build_http_app(DataPlane(backend, GatewayConfig()))
    transport = httpx.ASGITransport(app=RequestIdMiddleware(app))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
    ):
        own = await client.get(path)
        given = await client.get(path, headers={"x-request-id": "my-id_1"})
    assert len(own.headers.get_list("x-request-id")) == 1
    assert given.headers.get_list("x-request-id") == ["my-id_1"]


async def test_the_content_type_does_not_matter(client: httpx.AsyncClient) -> None:
    content = json.dumps(prompt_body())
    assert (await client.post(COMPLETIONS, content=content, headers={"content-type": "x/y"})).status_code == 200


async def test_a_megabyte_of_headers_gets_431_and_the_next_request_works(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models", headers={f"x-{index}": "a" * 1000 for index in range(66)})
    assert response.status_code == 431
    assert "larger than 65536 bytes" in response.json()["error"]["message"]
    assert (await client.get("/v1/models", headers={"x-1": "a" * 8000})).status_code == 200


async def test_a_ten_megabyte_body_gets_413_and_the_next_request_works(client: httpx.AsyncClient) -> None:
    response = await client.post(COMPLETIONS, content=b"x" * 10_000_000)
    assert response.status_code == 413
    assert (await client.post(COMPLETIONS, json=prompt_body())).status_code == 200


async def test_prompts_far_too_long_are_refused_before_they_are_tokenized(client: httpx.AsyncClient) -> None:
    text = "hello there " * 80_000
    chat = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
    for path, body, field in ((COMPLETIONS, prompt_body(prompt=text), "prompt"), (CHAT, chat, "messages")):
        answer = (await client.post(path, json=body)).json()["error"]
        assert (answer["code"], answer["param"]) == ("context_length_exceeded", field)
        assert "has more tokens than this model's context of 512" in answer["message"]


# The openai client


async def test_openai_lists_models(openai_client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in openai_client.models.list()] == ["tiny"]
    assert (await openai_client.models.retrieve("tiny")).owned_by == "rayshard"


async def test_openai_completes(openai_client: openai.AsyncOpenAI) -> None:
    answer = await openai_client.completions.create(
        model="tiny", prompt="hello", max_tokens=4, n=2, logprobs=2, seed=3, stop=["zzz"], echo=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text.startswith("hello")
    assert answer.choices[0].logprobs is not None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


async def test_openai_streams_a_completion(openai_client: openai.AsyncOpenAI) -> None:
    stream = await openai_client.completions.create(
        model="tiny", prompt="hello", max_tokens=6, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "hello"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


async def test_openai_chats(openai_client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    backend.script = say(*backend.ids("Good day.\nUser:"), backend.eos_token_id)
    answer = await openai_client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}],
        n=2,
        logprobs=True,
        top_logprobs=3,
        stop=["\nUser:"],
        temperature=0,
        max_completion_tokens=40,
    )
    assert [choice.message.content for choice in answer.choices] == ["Good day.", "Good day."]
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content[0].top_logprobs) == 3


async def test_openai_streams_a_chat(openai_client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    backend.script = say(*backend.ids("Grüße 🙂!"), backend.eos_token_id)
    stream = await openai_client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], n=2, stream=True
    )
    texts = ["", ""]
    reasons = {}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
    assert texts == ["Grüße 🙂!"] * 2
    assert reasons == {0: "stop", 1: "stop"}


async def test_openai_helper_collects_a_stream(openai_client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    backend.script = say(*backend.ids("hello"), backend.eos_token_id)
    async with openai_client.chat.completions.stream(
        model="tiny", messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "hello"


async def test_openai_gets_its_own_errors(openai_client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        await openai_client.completions.create(model="nope", prompt="a")
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        await openai_client.completions.create(model="tiny", prompt="a", n=1000)
    assert bad.value.param == "n"
    backend.error, backend.fail_at_step = QueueFullError("full"), 0
    with pytest.raises(openai.RateLimitError):
        await openai_client.completions.create(model="tiny", prompt="a")
    backend.fail_at_step = 2
    stream = await openai_client.completions.create(model="tiny", prompt="a", stream=True)
    with pytest.raises(openai.APIError, match="full"):
        _ = [chunk async for chunk in stream]


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_may_set_a_shorter_time_limit(
    client: httpx.AsyncClient, backend: ScriptedBackend, is_stream: bool
) -> None:
    backend.first_step_s, backend.step_s = 0.0, 60
    body = prompt_body(max_tokens=300, stream=is_stream)
    response = await client.post(COMPLETIONS, json=body, headers={"x-request-timeout-ms": "100"})
    assert response.status_code == (200 if is_stream else 504)
    assert "longer than 0.1 s" in response.text
    await until(lambda: backend.num_open == 0)
    for given in ("0", "soon", "-1", "0" * 5000, "9" * 5000):
        refused = await client.post(COMPLETIONS, json=body, headers={"x-request-timeout-ms": given})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-request-timeout-ms")
