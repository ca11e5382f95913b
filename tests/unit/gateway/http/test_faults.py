"""What is not an error of ours: its kind and place are logged, and nobody reads what it says."""

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving

SECRET = "my prompt"


@pytest.fixture
def backend(tmp_path: Path) -> ScriptedBackend:
    def fail(*_given: object) -> list[int]:
        try:
            raise LookupError(SECRET)
        except LookupError as error:
            raise ValueError(f"no token for {SECRET}") from error

    return ScriptedBackend(save_model_dir(tmp_path), script=fail)


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    app = build_http_app(DataPlane(backend, GatewayConfig()))
    async with serving(app) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/messages", "/api/generate"])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_fault_is_a_500_and_its_words_are_in_no_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, path: str, is_streamed: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    messages = [{"role": "user", "content": SECRET}]
    asked = {"messages": messages} if path.endswith(("completions", "messages")) else {"prompt": SECRET}
    body = {"prompt": SECRET} if path == "/v1/completions" else asked
    more = {"max_tokens": 5} if path.startswith("/v1") else {}
    response = await client.post(path, json={"model": "tiny", "stream": is_streamed, **body, **more})
    assert response.status_code == 500
    assert SECRET not in response.text
    ours = [record for record in caplog.records if record.name.startswith("serve_app")]
    (fault,) = [record.getMessage() for record in ours if "request failed" in record.getMessage()]
    assert fault.startswith("request failed error=ValueError\n")
    assert "caused by LookupError" in fault
    assert "in fail" in fault, "where it was"
    assert not [record for record in caplog.records if record.exc_info]
    assert SECRET not in caplog.text


async def test_a_fault_in_the_midst_of_a_stream_ends_it_and_its_words_are_in_no_log(
    client: httpx.AsyncClient,
    backend: ScriptedBackend,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    say: Callable[..., list[int]] = lambda *_given: backend.ids("so it is, and so on")  # noqa: E731
    monkeypatch.setattr(backend, "script", say)
    monkeypatch.setattr(backend, "error", ValueError(SECRET))
    backend.fail_at_step = 3
    response = await client.post("/v1/completions", json={"model": "tiny", "prompt": "a", "stream": True})
    assert response.status_code == 200
    assert "see its log" in response.text
    assert "request failed error=ValueError" in caplog.text
    assert SECRET not in response.text + caplog.text
