"""What the console asks for once a second, and what it may cost."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from tests.api_keys import bearer, write_keys
from tests.fakes import NO_TLS, ScriptedBackend, serving
from tests.unit.gateway.http.test_inference_routes import description

STATE = "/console/state"


@pytest.fixture
def plane(backend: ScriptedBackend) -> DataPlane:
    backend.extra_models = [description(backend.source_dir, "vectors", "embed", {})]
    return DataPlane(backend, GatewayConfig(), "gateway-1")


@pytest.fixture
async def client(plane: DataPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(build_http_app(plane)) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        yield client


async def test_it_tells_models_copies_and_tokens_so_far(client: httpx.AsyncClient) -> None:
    answer = await client.get(STATE)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    state = answer.json()
    assert (state["gateway"], state["has_keys"], state["is_admin"]) == ("gateway-1", False, True)
    assert [(model["name"], model["task"]) for model in state["models"]] == [("tiny", "generate"), ("vectors", "embed")]
    assert state["health"] == (await client.get("/health")).json()
    body = {"model": "tiny", "prompt": [64, 65, 66], "max_tokens": 5}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    tiny, vectors = (await client.get(STATE)).json()["models"]
    assert (tiny["num_prompt_tokens"], tiny["num_output_tokens"], tiny["num_first_tokens"]) == (3, 5, 1)
    assert tiny["first_token_sum_s"] > 0
    assert (vectors["num_prompt_tokens"], vectors["num_output_tokens"], vectors["first_token_sum_s"]) == (0, 0, 0)


async def test_it_answers_while_nothing_is_well_and_while_the_server_drains(
    client: httpx.AsyncClient, plane: DataPlane, backend: ScriptedBackend
) -> None:
    backend.is_healthy = False
    answer = await client.get(STATE)
    assert (answer.status_code, answer.json()["health"]["status"]) == (200, "unavailable")
    plane.intake.close()
    answer = await client.get(STATE)
    assert (answer.status_code, answer.json()["health"]["status"]) == (200, "draining")


async def test_a_key_sees_its_own_models_and_looking_costs_none_of_its_requests(
    backend: ScriptedBackend, tmp_path: Path
) -> None:
    backend.extra_models = [description(backend.source_dir, "vectors", "embed", {})]
    web, ops = write_keys(tmp_path / "keys", "name=web models=vectors requests_per_minute=1", "name=ops admin")
    config = GatewayConfig(api_keys_file=str(tmp_path / "keys"))
    async with (
        serving(build_http_app(DataPlane(backend, config))) as url,
        httpx.AsyncClient(verify=NO_TLS, base_url=url) as client,
    ):
        for headers in ({}, bearer("wrong")):
            refused = await client.get(STATE, headers=headers)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        for _ in range(5):
            state = (await client.get(STATE, headers=bearer(web))).json()
        assert [model["name"] for model in state["models"]] == ["vectors"]
        assert (state["health"]["models"], state["has_keys"], state["is_admin"]) == ({}, True, False)
        assert (await client.get("/v1/models", headers=bearer(web))).status_code == 200
        state = (await client.get(STATE, headers=bearer(ops))).json()
        assert [model["name"] for model in state["models"]] == ["tiny", "vectors"]
        assert (list(state["health"]["models"]), state["is_admin"]) == (["tiny"], True)
