"""A Gateway that drains, over HTTP: what it refuses and how, what it still answers, what it waits for."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import UnavailableError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.intake import Intake
from tests.api_keys import write_keys
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving
from tests.unit.gateway.http.test_app import prompt_body, until


@pytest.fixture
async def plane(tmp_path: Path) -> DataPlane:
    return DataPlane(ScriptedBackend(save_model_dir(tmp_path), step_s=0.005), GatewayConfig())


@pytest.fixture
async def client(plane: DataPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(build_http_app(plane)) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        yield client


def test_a_request_counts_while_it_runs_and_none_is_taken_once_it_is_closed() -> None:
    intake = Intake()
    with intake.taken(), intake.taken():
        intake.close()
        assert intake.num_running == 2
        with pytest.raises(UnavailableError, match="draining") as refused, intake.taken():
            pass
        assert refused.value.retry_after_s == 5.0
        assert intake.num_running == 2
    assert intake.num_running == 0


async def test_a_stream_ends_whole_and_new_requests_are_told_when_to_come_back(
    client: httpx.AsyncClient, plane: DataPlane
) -> None:
    body = prompt_body(max_tokens=20, ignore_eos=True, stream=True)
    async with client.stream("POST", "/v1/completions", json=body) as stream:
        await until(lambda: plane.intake.num_running == 1)
        plane.intake.close()
        for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("POST", "/v2/models/tiny/infer")):
            refused = await client.request(method, path, json=prompt_body())
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5"), path
            assert "the server is draining" in refused.text
        assert plane.intake.num_running == 1
        lines = [line async for line in stream.aiter_lines()]
    assert lines[-2:] == ["data: [DONE]", ""]
    assert plane.intake.num_running == 0


async def test_health_says_that_it_drains(client: httpx.AsyncClient, plane: DataPlane) -> None:
    plane.intake.close()
    health = await client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "draining")
    assert health.json()["models"]["tiny"][0]["state"] == "ready"
    assert (await client.get("/ping")).status_code == 503
    assert (await client.get("/v2/health/ready")).status_code == 503
    assert (await client.get("/v2/health/live")).status_code == 200
    assert plane.intake.num_running == 0  # nobody waits for such


async def test_a_caller_without_a_key_is_told_that_it_drains(tmp_path: Path) -> None:
    write_keys(tmp_path / "keys", "name=all")
    config = GatewayConfig(api_keys_file=str(tmp_path / "keys"))
    plane = DataPlane(ScriptedBackend(save_model_dir(tmp_path / "model")), config)
    plane.intake.close()
    async with serving(build_http_app(plane)) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        health, refused = await asyncio.gather(client.get("/health"), client.get("/v1/models"))
    assert (health.status_code, health.json()) == (503, {"status": "draining"})
    assert refused.status_code == 503
