"""Whose a request is."""

from pathlib import Path

import httpx
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from tests.fakes import ScriptedBackend, save_model_dir
from tests.openai_calls import CHAT, COMPLETIONS, chat_body, prompt_body


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, prompt_body()), (CHAT, chat_body())])
async def test_without_keys_a_request_is_its_hosts(tmp_path: Path, path: str, body: dict[str, object]) -> None:
    backend = ScriptedBackend(save_model_dir(tmp_path))
    app = build_http_app(DataPlane(backend, GatewayConfig()))
    async with app.router.lifespan_context(app):
        for host in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
            transport = httpx.ASGITransport(app=app, client=(host, 4000))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                assert (await client.post(path, json=body)).status_code == 200
    assert [request.owner for request in backend.requests] == ["host 10.0.0.1", "host 10.0.0.2", "host 10.0.0.1"]
