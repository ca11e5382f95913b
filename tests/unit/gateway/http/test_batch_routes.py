"""/v1/files and /v1/batches as OpenAI's client sees them."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import UnavailableError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.key_file import new_key
from tests.batch_calls import CHAT, becomes, completion, gateway, jsonl, openai_of, read_jsonl, started, until
from tests.fakes import ScriptedBackend


@pytest.fixture
async def http(backend: ScriptedBackend, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway(backend, tmp_path / "batches") as client:
        yield client


@pytest.fixture
def client(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai_of(http)


async def test_a_batch_answers_as_its_endpoint_would(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    lines = [completion(f"line-{number}", f"hello {number}") for number in range(20)]
    batch = await started(client, jsonl(lines), metadata={"project": "x"})
    assert (batch.status, batch.object, batch.endpoint) == ("validating", "batch", "/v1/completions")
    batch = await until(client, batch.id)
    assert (batch.status, batch.model, batch.metadata) == ("completed", "tiny", {"project": "x"})
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 20, "completed": 20, "failed": 0}
    assert batch.error_file_id is None
    assert batch.output_file_id is not None
    found = read_jsonl((await client.files.content(batch.output_file_id)).content)
    assert set(found) == {line["custom_id"] for line in lines}
    direct = await client.completions.create(model="tiny", prompt="hello 7", max_tokens=4)
    answer = found["line-7"]["response"]
    assert answer["status_code"] == 200
    assert answer["body"]["choices"] == [choice.model_dump() for choice in direct.choices]
    assert batch.usage is not None
    assert batch.usage.output_tokens == 80
    assert all(request.priority == 1000 for request in backend.requests[:20])
    assert backend.requests[20].priority == 0


async def test_a_chats_batch_keeps_answers_and_errors_apart(client: openai.AsyncOpenAI) -> None:
    def line(custom_id: str, **keys: object) -> dict[str, object]:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, **keys}
        return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}

    batch = await started(client, jsonl([line("good"), line("bad", temperature=9)]), CHAT)
    batch = await until(client, batch.id)
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 2, "completed": 1, "failed": 1}
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    good = read_jsonl((await client.files.content(batch.output_file_id)).content)
    bad = read_jsonl((await client.files.content(batch.error_file_id)).content)
    assert good["good"]["response"]["body"]["object"] == "chat.completion"
    assert bad["bad"]["response"]["status_code"] == 400
    assert bad["bad"]["response"]["body"]["error"]["param"] == "temperature"
    names = {file.id: (file.filename, file.purpose) async for file in client.files.list(purpose="batch_output")}
    assert names == {
        batch.output_file_id: (f"{batch.id}_output.jsonl", "batch_output"),
        batch.error_file_id: (f"{batch.id}_error.jsonl", "batch_output"),
    }


async def test_a_batch_of_responses(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    body = {"model": "tiny", "input": "hello", "max_output_tokens": 3}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}
    batch = await until(client, (await started(client, jsonl([line]), "/v1/responses")).id)
    assert batch.output_file_id is not None
    answers = read_jsonl((await client.files.content(batch.output_file_id)).content)
    assert answers["a"]["response"]["body"]["object"] == "response"
    assert [request.priority for request in backend.requests] == [1000]
    assert batch.usage is not None
    assert batch.usage.output_tokens == 3


async def test_a_line_waits_while_no_copy_is_up(
    http: httpx.AsyncClient, client: openai.AsyncOpenAI, backend: ScriptedBackend
) -> None:
    backend.error = UnavailableError("no copy is up", retry_after_s=0.1)
    batch = await started(client, jsonl([completion("only")]))
    await becomes(lambda: bool(backend.requests))
    backend.error = None
    batch = await until(client, batch.id)
    text = (await http.get("/metrics")).text
    assert 'route="batch /v1/completions",status="2xx"} 1.0' in text
    assert 'route="batch /v1/completions",status="5xx"} 0.0' in text
    assert 'reason="unavailable"} 0.0' in text
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 1, "completed": 1, "failed": 0}


async def test_a_fault_of_ours_is_logged_without_the_line(
    client: openai.AsyncOpenAI, backend: ScriptedBackend, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(_request: object, _choice: int) -> list[int]:
        raise LookupError(line["body"])

    line = completion("only", prompt="secret")
    backend.script = fault
    batch = await until(client, (await started(client, jsonl([line]))).id)
    assert batch.request_counts is not None
    assert batch.request_counts.failed == 1
    assert "LookupError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_bad_file_is_told_line_by_line(client: openai.AsyncOpenAI) -> None:
    content = jsonl([completion("a"), completion("a")]) + b"{broken\n" + jsonl([completion("b", stream=True)])
    batch = await until(client, (await started(client, content)).id)
    assert batch.status == "failed"
    assert batch.errors is not None
    told = [(error.line, error.code) for error in batch.errors.data or []]
    assert told == [(2, "duplicate_custom_id"), (3, "invalid_line"), (4, "stream_unsupported")]


async def test_a_model_that_is_not_served_fails_the_batch(client: openai.AsyncOpenAI) -> None:
    batch = await until(client, (await started(client, jsonl([completion("a", model="other")]))).id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert batch.errors.data[0].code == "model_not_found"
    assert "tiny" in (batch.errors.data[0].message or "")


async def test_a_batch_can_be_cancelled(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    backend.step_s = 5.0
    batch = await started(client, jsonl([completion(str(number)) for number in range(50)]))
    await until(client, batch.id, "in_progress")
    batch = await client.batches.cancel(batch.id)
    assert batch.status == "cancelling"
    assert batch.cancelling_at is not None
    batch = await until(client, batch.id)
    assert batch.status == "cancelled"
    assert backend.num_open == 0
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        await client.batches.cancel(batch.id)


async def test_batches_and_files_come_in_pages(client: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("lines.jsonl", jsonl([completion("a")])), purpose="batch")
    made = []
    for _ in range(5):
        made.append(
            await client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        )
    listed = [batch.id async for batch in client.batches.list(limit=2)]
    assert listed == [batch.id for batch in reversed(made)]
    first = await client.batches.list(limit=2)
    assert (first.has_more, len(first.data)) == (True, 2)
    files = [one.id async for one in client.files.list(limit=1, purpose="batch", order="asc")]
    assert files == [file.id]
    with pytest.raises(openai.BadRequestError, match="limit=0"):
        await client.batches.list(limit=0)


async def test_a_file_is_kept_as_it_was_and_can_be_deleted(client: openai.AsyncOpenAI) -> None:
    content = jsonl([completion("a")])
    file = await client.files.create(
        file=("../lines.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.bytes, file.purpose, file.status) == (len(content), "batch", "processed")
    assert file.expires_at == file.created_at + 3600
    assert (await client.files.retrieve(file.id)).filename == "../lines.jsonl"
    assert (await client.files.content(file.id)).content == content
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file.id)


async def test_a_file_that_a_batch_needs_is_not_deleted(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    backend.step_s = 5.0
    batch = await started(client, jsonl([completion("a")]))
    with pytest.raises(openai.BadRequestError, match="is needed by"):
        await client.files.delete(batch.input_file_id)
    await client.batches.cancel(batch.id)
    await until(client, batch.id)
    assert (await client.files.delete(batch.input_file_id)).deleted


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"endpoint": "/v1/images"}, "endpoint='/v1/images' is not for batches; send one of /v1/chat/completions"),
        ({"completion_window": "1h"}, "completion_window='1h' is not known; send 24h"),
        ({"input_file_id": "../../etc/passwd"}, "file '../../etc/passwd' is not there"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "never", "seconds": 3600}}, "send created_at"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds=1"),
        ({"colour": "red"}, "colour is unknown"),
    ],
)
async def test_what_a_batch_cannot_be_is_refused(
    http: httpx.AsyncClient, client: openai.AsyncOpenAI, changed: dict[str, object], part: str
) -> None:
    file = await client.files.create(file=("lines.jsonl", b"{}"), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": "/v1/completions", "completion_window": "24h", **changed}
    response = await http.post("/v1/batches", json=body)
    assert response.status_code in (400, 404)
    assert part in response.json()["error"]["message"]


async def test_each_key_sees_its_own(backend: ScriptedBackend, tmp_path: Path) -> None:
    keys = [new_key(f"name={name}") for name in ("one", "two")]
    (tmp_path / "keys.txt").write_text("\n".join(line for _key, line in keys))
    async with gateway(backend, tmp_path / "batches", api_keys_file=str(tmp_path / "keys.txt")) as http:
        one, two = (openai_of(http, key) for key, _line in keys)
        batch = await until(one, (await started(one, jsonl([completion("a")]))).id)
        assert batch.status == "completed"
        assert batch.output_file_id is not None
        assert (await client_ids(two), [file.id async for file in two.files.list()]) == ([], [])
        for call in (
            two.batches.retrieve(batch.id),
            two.batches.cancel(batch.id),
            two.files.retrieve(batch.input_file_id),
            two.files.content(batch.output_file_id),
            two.files.delete(batch.output_file_id),
            two.batches.create(input_file_id=batch.input_file_id, endpoint="/v1/completions", completion_window="24h"),
        ):
            with pytest.raises(openai.NotFoundError):
                await call
        assert await client_ids(one) == [batch.id]


async def client_ids(client: openai.AsyncOpenAI) -> list[str]:
    return [batch.id async for batch in client.batches.list()]


async def test_a_key_without_the_model_cannot_reach_it_by_a_batch(backend: ScriptedBackend, tmp_path: Path) -> None:
    key, line = new_key("name=one models=other")
    (tmp_path / "keys.txt").write_text(line)
    async with gateway(backend, tmp_path / "batches", api_keys_file=str(tmp_path / "keys.txt")) as http:
        client = openai_of(http, key)
        batch = await until(client, (await started(client, jsonl([completion("a")]))).id)
    assert batch.status == "failed"
    assert backend.requests == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files/file-1/content"),
        ("DELETE", "/v1/files/file-1"),
        ("GET", "/v1/batches"),
        ("POST", "/v1/batches"),
        ("POST", "/v1/batches/batch_1/cancel"),
    ],
)
async def test_where_batches_are_off_the_routes_say_what_to_set(
    backend: ScriptedBackend, method: str, path: str
) -> None:
    app = build_http_app(DataPlane(backend, GatewayConfig()))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client,
    ):
        response = await client.request(method, path)
    assert response.status_code == 404
    assert "set batches.directory" in response.json()["error"]["message"]


async def test_requests_of_batches_are_counted_apart(http: httpx.AsyncClient, client: openai.AsyncOpenAI) -> None:
    await until(client, (await started(client, jsonl([completion("a"), completion("b", n=0)]))).id)
    text = (await http.get("/metrics")).text
    of_batches = 'route="batch /v1/completions"'
    assert f'rayshard_requests_total{{gateway="gateway",model="tiny",{of_batches},status="2xx"}} 1.0' in text
    assert f'rayshard_requests_total{{gateway="gateway",model="",{of_batches},status="4xx"}} 1.0' in text
    assert 'rayshard_batch_requests_left{gateway="gateway"} 0.0' in text


async def test_what_waits_on_purpose_is_in_no_histogram_that_alerts_are_made_of(
    http: httpx.AsyncClient, client: openai.AsyncOpenAI
) -> None:
    await until(client, (await started(client, jsonl([completion("a", max_tokens=3)]))).id)
    text = (await http.get("/metrics")).text
    of_model = '{gateway="gateway",model="tiny"}'
    assert f"rayshard_time_to_first_token_seconds_count{of_model} 0.0" in text
    assert f"rayshard_inter_token_latency_seconds_count{of_model} 0.0" in text
    assert f"rayshard_generation_tokens_total{of_model} 3.0" in text
    body = {"model": "tiny", "prompt": [64, 65], "max_tokens": 3}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    text = (await http.get("/metrics")).text
    assert f"rayshard_time_to_first_token_seconds_count{of_model} 1.0" in text
    assert f"rayshard_generation_tokens_total{of_model} 6.0" in text


async def test_a_batch_goes_on_in_a_gateway_that_starts_later(backend: ScriptedBackend, tmp_path: Path) -> None:
    backend.step_s = 0.002
    lines = [completion(f"{number}", f"hello {number}") for number in range(40)]
    async with gateway(backend, tmp_path / "batches", batches_concurrency=2) as http:
        batch = await started(openai_of(http), jsonl(lines))
        await becomes(lambda: len(backend.requests) >= 6)
    assert backend.num_open == 0
    async with gateway(backend, tmp_path / "batches") as http:
        client = openai_of(http)
        batch = await until(client, batch.id)
        assert batch.output_file_id is not None
        found = read_jsonl((await client.files.content(batch.output_file_id)).content)
    assert (batch.status, len(found)) == ("completed", 40)
    assert 40 <= len(backend.requests) <= 42  # the two that ran as the first Gateway ended
