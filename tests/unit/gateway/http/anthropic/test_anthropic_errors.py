"""Errors of the Messages API as Anthropic's own client tells them apart, those of the middleware too."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
import pytest_asyncio

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import InternalError, QueueFullError, RayshardError, ShardLostError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.key_file import new_key
from tests.anthropic_calls import ASKED, COUNT, MESSAGES, sdk_of
from tests.fakes import NO_TLS, ScriptedBackend, serving

NAMED = {"x-request-id": "req-7"}


def told(response: httpx.Response) -> tuple[int, str]:
    """Status and type of an error that has this API's shape."""
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}, body
    assert (body["type"], set(body["error"])) == ("error", {"type", "message"})
    assert body["request_id"] == response.headers["request-id"] == "req-7"
    return response.status_code, body["error"]["type"]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "status", "type_name"),
    [
        (ShardLostError("lost", retry_after_s=2.0), anthropic.InternalServerError, 503, "overloaded_error"),
        (QueueFullError("full", retry_after_s=2.0), anthropic.RateLimitError, 429, "rate_limit_error"),
        (InternalError("a fault"), anthropic.InternalServerError, 500, "api_error"),
    ],
)
async def test_errors_before_the_first_token_are_plain(
    sdk: anthropic.AsyncAnthropic,
    backend: ScriptedBackend,
    error: RayshardError,
    kind: type[anthropic.APIStatusError],
    status: int,
    type_name: str,
    is_streamed: bool,
) -> None:
    backend.error = error
    with pytest.raises(kind) as found:
        await sdk.messages.create(**ASKED, stream=is_streamed, extra_headers=NAMED)
    assert (found.value.status_code, found.value.type, found.value.request_id) == (status, type_name, "req-7")
    assert found.value.response.headers.get("retry-after") == ("2" if error.is_retryable else None)


async def test_what_is_not_there_and_what_takes_too_long(backend: ScriptedBackend) -> None:
    backend.step_s = 5.0
    async with sdk_of(backend) as sdk:
        with pytest.raises(anthropic.NotFoundError) as missing:
            await sdk.messages.create(**{**ASKED, "model": "other"})
        with pytest.raises(anthropic.NotFoundError):
            await sdk.messages.batches.create(requests=[])
        with pytest.raises(anthropic.InternalServerError) as late:
            await sdk.messages.create(**ASKED, extra_headers={"x-request-timeout-ms": "50"})
    assert (missing.value.type, late.value.type, late.value.status_code) == ("not_found_error", "timeout_error", 504)


@pytest_asyncio.fixture
async def small(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a Gateway that takes little."""
    plane = DataPlane(backend, GatewayConfig(max_request_bytes=1000, allowed_hosts=["127.0.0.1"]))
    async with (
        serving(build_http_app(plane)) as url,
        httpx.AsyncClient(verify=NO_TLS, base_url=url, headers=NAMED) as client,
    ):
        yield client


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
async def test_what_no_route_sees_is_told_in_this_shape(small: httpx.AsyncClient, path: str) -> None:
    answers: list[tuple[dict[str, Any], tuple[int, str]]] = [
        ({"content": b"a" * 1001}, (413, "request_too_large")),
        ({"content": b"{"}, (400, "invalid_request_error")),
        ({"content": b"{}", "headers": {"content-type": "text/plain"}}, (415, "invalid_request_error")),
        ({"content": b"{}", "headers": {"content-encoding": "br"}}, (415, "invalid_request_error")),
        ({"content": b"{}", "headers": {"host": "evil.example"}}, (403, "permission_error")),
        ({"content": b"{}", "headers": {"origin": "http://evil.example"}}, (403, "permission_error")),
        (
            {"content": b"{}", "headers": {"x-long": "a" * 40_000, "x-longer": "a" * 30_000}},
            (431, "invalid_request_error"),
        ),
    ]
    for sent, expected in answers:
        assert told(await small.post(path, **sent)) == expected, sent
    assert told(await small.get(path)) == (405, "invalid_request_error")
    assert told(await small.post(f"{path}/nothing", json={})) == (404, "not_found_error")


async def test_a_server_that_drains_says_so(backend: ScriptedBackend) -> None:
    plane = DataPlane(backend, GatewayConfig())
    async with (
        serving(build_http_app(plane)) as url,
        httpx.AsyncClient(verify=NO_TLS, base_url=url, headers=NAMED) as client,
    ):
        plane.intake.close()
        assert told(await client.post(MESSAGES, json=ASKED)) == (503, "overloaded_error")


async def test_faults_tell_no_details(backend: ScriptedBackend) -> None:
    def fail(*_given: object) -> list[int]:
        raise ValueError("a secret")

    backend.script = fail
    app = build_http_app(DataPlane(backend, GatewayConfig()))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=NAMED) as client:
            answer = await client.post(MESSAGES, json=ASKED)
    assert told(answer) == (500, "api_error")
    assert "secret" not in answer.text


async def test_keys_come_by_either_header(tmp_path: Path, backend: ScriptedBackend) -> None:
    key, line = new_key("name=me models=tiny")
    (tmp_path / "keys").write_text(f"{line}\n")
    keys = str(tmp_path / "keys")
    async with sdk_of(backend, key, api_keys_file=keys) as sdk:
        assert (await sdk.messages.create(**ASKED)).type == "message"
        assert (await sdk.with_options(auth_token=key).messages.create(**ASKED)).type == "message"
        both = {"authorization": f"Bearer {key}", "x-api-key": key}
        assert (await sdk.messages.create(**ASKED, extra_headers=both)).type == "message"
        assert (await sdk.messages.create(**ASKED, extra_headers={**both, "x-api-key": ""})).type == "message"
        assert {request.owner for request in backend.requests} == {"key me"}
        assert [model.id async for model in sdk.models.list()] == ["tiny"]
        with pytest.raises(anthropic.AuthenticationError) as unknown:
            await sdk.with_options(api_key="other").messages.create(**ASKED)
        with pytest.raises(anthropic.BadRequestError, match="2 API keys were sent"):
            await sdk.messages.create(**ASKED, extra_headers={**both, "x-api-key": "other"})
    assert (unknown.value.type, unknown.value.status_code) == ("authentication_error", 401)
