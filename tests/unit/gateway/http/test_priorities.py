"""Which priority a request has, and how much of its time is left when a model is asked."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.key_file import new_key
from serve_app.preprocessing.arrays import to_tensor_data
from serve_app.types.graphs import GraphRequest, GraphResult, GraphRun, GraphValue
from serve_app.types.models import ModelDescription
from tests.fakes import ScriptedBackend, save_model_dir
from tests.fakes_graph import described
from tests.openai_calls import CHAT, COMPLETIONS, RESPONSES, chat_body, prompt_body

EMBED = "/v1/embeddings"
MAX_PRIORITY = 1000


@pytest.fixture
def backend(tmp_path: Path) -> ScriptedBackend:
    directory = save_model_dir(tmp_path)
    graph = ModelDescription("graph", "graph", "", 0, 0, 0, [], 1, has_tokenizer=False, graph_gives="text")
    vector = {"embedding": to_tensor_data(np.ones((1, 3), np.float32))}
    return ScriptedBackend(
        directory, infer_script=lambda _item: vector, extra_models=[described(directory, "vectors", "embed"), graph]
    )


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    async for client in clients(backend, GatewayConfig()):
        yield client


async def clients(backend: ScriptedBackend, config: GatewayConfig) -> AsyncIterator[httpx.AsyncClient]:
    app = build_http_app(DataPlane(backend, config))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client


@pytest.mark.parametrize(
    ("path", "body"), [(COMPLETIONS, prompt_body()), (CHAT, chat_body()), (RESPONSES, {"input": "hello"})]
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_requests_priority_reaches_the_model(
    client: httpx.AsyncClient, backend: ScriptedBackend, path: str, body: dict[str, Any], is_stream: bool
) -> None:
    for priority in (None, -3, 0, 7):
        response = await client.post(path, json={**body, "priority": priority, "stream": is_stream})
        assert response.status_code == 200, response.text
    assert [request.priority for request in backend.requests] == [0, -3, 0, 7]


@pytest.mark.parametrize("given", [MAX_PRIORITY + 1, -MAX_PRIORITY - 1, 1.5, "high", True])
@pytest.mark.parametrize("path", [COMPLETIONS, EMBED])
async def test_a_wrong_priority_is_refused(
    client: httpx.AsyncClient, backend: ScriptedBackend, path: str, given: object
) -> None:
    body = prompt_body() if path == COMPLETIONS else {"model": "vectors", "input": "a"}
    response = await client.post(path, json={**body, "priority": given})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "priority")
    assert not backend.requests
    assert not backend.infer_requests


async def test_models_that_are_done_after_one_step_and_graphs_get_it_too(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    graph_requests: list[GraphRequest] = []

    async def run(request: GraphRequest) -> GraphResult:
        graph_requests.append(request)
        return GraphResult([], [GraphRun([GraphValue("text", texts=["b"])])], False, 1)

    backend.graph = run
    limit = {"x-request-timeout-ms": "60000"}
    await client.post(EMBED, json={"model": "vectors", "input": "a", "priority": 3}, headers=limit)
    await client.post("/v2/embed", json={"model": "vectors", "texts": ["a"], "priority": 9}, headers=limit)
    response = await client.post("/predict", json={"model": "graph", "text": "a", "priority": -4}, headers=limit)
    assert response.status_code == 200, response.text
    assert [request.priority for request in backend.infer_requests] == [3, 9]
    assert [request.priority for request in graph_requests] == [-4]
    times = [one.time_left_s for one in backend.infer_requests] + [one.time_left_s for one in graph_requests]
    assert all(left_s is not None and 10 < left_s < 60 for left_s in times)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_requests_time_travels_with_it(
    client: httpx.AsyncClient, backend: ScriptedBackend, is_stream: bool
) -> None:
    for headers in ({"x-request-timeout-ms": "60000"}, {}):
        await client.post(COMPLETIONS, json=prompt_body(stream=is_stream), headers=headers)
    timed, untimed = backend.requests
    assert timed.time_left_s is not None
    assert 10 < timed.time_left_s < 60
    assert untimed.time_left_s is None


async def test_the_gateways_own_limit_travels_too(backend: ScriptedBackend) -> None:
    async for client in clients(backend, GatewayConfig(request_timeout_s=50)):
        await client.post(COMPLETIONS, json=prompt_body(), headers={"x-request-timeout-ms": "900000"})
    (request,) = backend.requests
    assert request.time_left_s is not None
    assert 5 < request.time_left_s < 50


@pytest.mark.parametrize(
    ("options", "asked", "given"),
    [
        ("", None, 0),
        ("", 4, 4),
        ("", -1, "send 0 or more"),
        ("best_priority=-5", None, 0),
        ("best_priority=-5", -5, -5),
        ("best_priority=-5", -6, "send -5 or more"),
        ("best_priority=5", None, 5),
        ("best_priority=5", 0, "send 5 or more"),
        ("best_priority=5", 8, 8),
    ],
)
async def test_a_key_says_how_early_its_requests_may_come(
    backend: ScriptedBackend, tmp_path: Path, options: str, asked: int | None, given: int | str
) -> None:
    key, line = new_key(f"name=web {options}".strip())
    (tmp_path / "keys").write_text(line)
    config = GatewayConfig(api_keys_file=str(tmp_path / "keys"))
    async for client in clients(backend, config):
        body = prompt_body() if asked is None else prompt_body(priority=asked)
        response = await client.post(COMPLETIONS, json=body, headers={"authorization": f"Bearer {key}"})
    if isinstance(given, int):
        assert response.status_code == 200, response.text
        assert [request.priority for request in backend.requests] == [given]
    else:
        assert (response.status_code, response.json()["error"]["param"]) == (400, "priority")
        assert f"priority={asked} is before what key web may ask for; {given}" in response.json()["error"]["message"]
        assert backend.requests == []
