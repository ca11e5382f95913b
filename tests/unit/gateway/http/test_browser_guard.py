"""A page of another site cannot drive a server that its browser reaches; curl and the SDKs notice nothing of that."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.http.browser_guard import hosts_when_bound_to
from tests.fakes import NO_TLS, ScriptedBackend, serving

COMPLETIONS = "/v1/completions"
BODY = json.dumps({"model": "tiny", "prompt": [64, 65], "max_tokens": 2}).encode()
JSON = {"content-type": "application/json"}


@pytest.fixture
async def client(model_dir: Path, request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    """Of a Gateway with the test's settings; bound to loopback where it says nothing of hosts."""
    settings: dict[str, Any] = {"allowed_hosts": hosts_when_bound_to("127.0.0.1"), **getattr(request, "param", {})}
    app = build_http_app(DataPlane(ScriptedBackend(model_dir), GatewayConfig(**settings)))
    async with serving(app) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url, timeout=20) as client:
        yield client


async def status(client: httpx.AsyncClient, headers: dict[str, str], path: str = COMPLETIONS) -> int:
    return (await client.post(path, content=BODY, headers=headers)).status_code


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "app.localhost", "localhost."]
)
async def test_loopback_s_names_are_allowed_on_loopback(client: httpx.AsyncClient, host: str) -> None:
    assert await status(client, {"host": host, **JSON}) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "a@localhost",
        "[::1",
        "10.0.0.1",
    ],
)
async def test_other_names_are_refused_on_loopback(client: httpx.AsyncClient, host: str) -> None:
    for path in (COMPLETIONS, "/health", "/v2/models/tiny/infer"):
        answer = await client.post(path, content=BODY, headers={"host": host, "origin": f"http://{host}", **JSON})
        assert (answer.status_code, "allowed_hosts" in answer.text) == (403, True)


@pytest.mark.parametrize("client", [{"allowed_hosts": ["models.example.com", "*.lan"]}], indirect=True)
async def test_hosts_of_the_settings(client: httpx.AsyncClient) -> None:
    for host, wanted in (("models.example.com:8000", 200), ("a.b.lan", 200), ("lan", 403), ("localhost", 403)):
        assert await status(client, {"host": host}) == wanted


@pytest.mark.parametrize("client", [{"allowed_hosts": None}, {"allowed_hosts": ["*"]}], indirect=True)
async def test_any_host_is_allowed_elsewhere(client: httpx.AsyncClient) -> None:
    assert await status(client, {"host": "whatever.example"}) == 200


def test_only_loopback_has_hosts_of_its_own() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert hosts_when_bound_to(host) == ["localhost", "*.localhost", "127.0.0.1", "::1"]
    for other in ("0.0.0.0", "::", "192.0.2.1", "server.example", "", None):
        assert hosts_when_bound_to(other) is None


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:3000", "https://localhost:8001", "x"]
)
@pytest.mark.parametrize("kind", ["text/plain", "application/json"])
async def test_pages_of_other_sites_are_refused(client: httpx.AsyncClient, origin: str, kind: str) -> None:
    headers = {"host": "localhost:8000", "origin": origin, "content-type": kind}
    for path in (COMPLETIONS, "/predict", "/predictions/tiny", "/v2/models/tiny/infer", "/v1/tokenize"):
        answer = await client.post(path, content=BODY, headers=headers)
        assert (answer.status_code, "cors_allowed_origins" in answer.text) == (403, True)
    assert isinstance((await client.post("/v2/models/tiny/infer", content=BODY, headers=headers)).json()["error"], str)


@pytest.mark.parametrize(
    ("host", "origin"),
    [("localhost:8000", "http://localhost:8000"), ("localhost", "https://localhost"), ("[::1]:80", "http://[::1]")],
)
async def test_the_server_s_own_pages_may_call(client: httpx.AsyncClient, host: str, origin: str) -> None:
    assert await status(client, {"host": host, "origin": origin, **JSON}) == 200


async def test_a_browser_knows_its_pages_better_than_a_host_that_a_proxy_has_written(client: httpx.AsyncClient) -> None:
    headers = {"host": "localhost:8000", "origin": "https://app.example", **JSON}
    assert await status(client, {**headers, "sec-fetch-site": "same-origin"}) == 200
    assert await status(client, {**headers, "sec-fetch-site": "cross-site"}) == 403
    assert await status(client, {**headers, "origin": "http://localhost:8000", "sec-fetch-site": "same-site"}) == 403


@pytest.mark.parametrize("client", [{"cors_allowed_origins": ["https://app.example"]}], indirect=True)
async def test_origins_of_the_settings_may_call(client: httpx.AsyncClient) -> None:
    assert await status(client, {"origin": "https://app.example", **JSON}) == 200
    assert await status(client, {"origin": "https://app.example:8443", **JSON}) == 403


@pytest.mark.parametrize("client", [{"cors_allowed_origins": ["*"]}], indirect=True)
async def test_all_origins_may_be_allowed(client: httpx.AsyncClient) -> None:
    assert await status(client, {"origin": "null", **JSON}) == 200


async def test_content_that_a_form_could_send_is_refused_where_json_is_read(client: httpx.AsyncClient) -> None:
    for kind in ("text/plain", "text/plain;charset=UTF-8", "multipart/form-data; boundary=x"):
        for path in (COMPLETIONS, "/v2/models/tiny/infer"):
            answer = await client.post(path, content=BODY, headers={"content-type": kind})
            assert (answer.status_code, "Content-Type: application/json" in answer.text) == (415, True)
    urlencoded = {"content-type": "application/x-www-form-urlencoded"}  # as `curl -d` sends what it is given
    assert await status(client, urlencoded) == 200
    assert await status(client, {**urlencoded, "origin": str(client.base_url).rstrip("/")}) == 415
    assert await status(client, {}) == 200
    assert await status(client, {"content-type": "text/plain"}, "/predictions/tiny") == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_hosts": []},
        {"allowed_hosts": ["http://a.example"]},
        {"allowed_hosts": ["a.example:80"]},
        {"cors_allowed_origins": ["a.example"]},
        {"cors_allowed_origins": ["https://a.example/"]},
        {"body_timeout_s": 0},
    ],
)
def test_settings_that_could_never_fit_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GatewayConfig(**settings)


@pytest.mark.parametrize("client", [{"body_timeout_s": 0.3}], indirect=True)
@pytest.mark.parametrize("head", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_body_half_sent_is_not_waited_for_for_ever(client: httpx.AsyncClient, head: str) -> None:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), timeout=30)  # to its end: the connection is closed
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout_s=0.3" in answer
    writer.close()
