"""What holds for chats of every API: keys, priorities, time limits, counts."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.key_file import new_key
from serve_app.gateway.time_limits import TIMEOUT_KEY
from tests.fakes import ScriptedBackend
from tests.unit.gateway.http.test_priorities import clients

MESSAGES = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v2/chat": {"messages": MESSAGES, "max_tokens": 4},
    "/api/chat": {"messages": MESSAGES, "options": {"num_predict": 4}},
    "/api/generate": {"prompt": "hello", "options": {"num_predict": 4}},
}


def message_of(response: httpx.Response) -> str:
    """An error's text, in the shape of its API."""
    error: Any = response.json()
    text: str = error["message"] if "message" in error else error["error"]
    return text


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_keys_and_priorities_hold(backend: ScriptedBackend, tmp_path: Path, path: str, is_stream: bool) -> None:
    key, line = new_key("name=web tokens_per_minute=60 models=tiny")
    (tmp_path / "keys").write_text(line)
    body = {**BODIES[path], "stream": is_stream}
    headers = {"authorization": f"Bearer {key}"}
    async for client in clients(backend, GatewayConfig(api_keys_file=str(tmp_path / "keys"))):
        nobody = await client.post(path, json=body)
        assert (nobody.status_code, "key" in message_of(nobody)) == (401, True)
        early = await client.post(path, json={**body, "priority": -1}, headers=headers)
        assert (early.status_code, "priority=-1" in message_of(early)) == (400, True)
        assert (await client.post(path, json={**body, "priority": 3}, headers=headers)).status_code == 200
        for _ in range(9):
            last = await client.post(path, json=body, headers=headers)
        assert (last.status_code, "tokens" in message_of(last)) == (429, True)
        assert last.headers["retry-after"]
    assert backend.requests[0].priority == 3
    assert {request.owner for request in backend.requests} == {"key web"}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_time_limits_hold(backend: ScriptedBackend, path: str, is_stream: bool) -> None:
    backend.first_step_s = 5
    async for client in clients(backend, GatewayConfig()):
        body, headers = {**BODIES[path], "stream": is_stream}, {TIMEOUT_KEY: "50"}
        late = await client.post(path, json=body, headers=headers)
        assert (late.status_code, "longer than 0.05 s" in message_of(late)) == (504, True)
        wrong = await client.post(path, json=body, headers={TIMEOUT_KEY: "soon"})
        assert (wrong.status_code, TIMEOUT_KEY in message_of(wrong)) == (400, True)
    assert (backend.num_open, len(backend.requests)) == (0, 1)


@pytest.mark.parametrize("path", BODIES)
async def test_requests_are_counted_by_their_route(backend: ScriptedBackend, path: str) -> None:
    async for client in clients(backend, GatewayConfig()):
        assert (await client.post(path, json=BODIES[path])).status_code == 200
        counts = (await client.get("/metrics")).text
    line = next(line for line in counts.splitlines() if f'route="{path}"' in line and "requests_total" in line)
    assert 'model="tiny"' in line
    assert 'status="2xx"' in line


@pytest.mark.parametrize("path", BODIES)
async def test_a_client_that_leaves_ends_its_request(backend: ScriptedBackend, path: str) -> None:
    backend.step_s = 5
    async for client in clients(backend, GatewayConfig()):
        asking = asyncio.create_task(client.post(path, json={**BODIES[path], "stream": False}))
        async with asyncio.timeout(10):
            while not backend.num_open:  # noqa: ASYNC110 - the backend has no event for it
                await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert (backend.num_open, backend.num_aborted) == (0, 1)
