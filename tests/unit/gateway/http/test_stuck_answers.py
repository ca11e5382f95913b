"""An answer that its grammar lets go nowhere is a fault of the request, in the shape of every API."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import UnprocessableError
from serve_app.scheduling.output import NOTHING_FITS_ERROR
from tests.fakes import ScriptedBackend, save_model_dir
from tests.openai_calls import client_of


def error_type(told: Any) -> Any:
    return told["error"]["type"]


MESSAGES = [{"role": "user", "content": "hello"}]
SHAPES: list[tuple[str, dict[str, Any], Callable[[Any], Any], Any]] = [
    ("/v1/completions", {"prompt": "hello"}, error_type, "invalid_request_error"),
    ("/v1/chat/completions", {"messages": MESSAGES}, error_type, "invalid_request_error"),
    ("/v1/responses", {"input": "hello"}, error_type, "invalid_request_error"),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 9}, error_type, "invalid_request_error"),
    ("/v2/chat", {"messages": MESSAGES}, lambda told: told["message"], NOTHING_FITS_ERROR),
    ("/api/chat", {"messages": MESSAGES, "stream": False}, lambda told: told["error"], NOTHING_FITS_ERROR),
    ("/api/generate", {"prompt": "hello", "stream": False}, lambda told: told["error"], NOTHING_FITS_ERROR),
]  # fmt: skip


@pytest.fixture
def backend(tmp_path: Path) -> ScriptedBackend:
    backend = ScriptedBackend(save_model_dir(tmp_path))
    backend.error = UnprocessableError(NOTHING_FITS_ERROR)
    return backend


@pytest.mark.parametrize(("path", "keys", "look", "expected"), SHAPES, ids=[shape[0] for shape in SHAPES])
async def test_a_whole_answer_is_a_422(
    backend: ScriptedBackend, path: str, keys: dict[str, Any], look: Callable[[Any], Any], expected: str
) -> None:
    backend.fail_at_step = 2
    async with client_of(backend) as client:
        response = await client.post(path, json={"model": "tiny", **keys})
    assert response.status_code == 422, response.text
    assert look(response.json()) == expected
    assert NOTHING_FITS_ERROR in response.text
    assert "retry-after" not in response.headers


@pytest.mark.parametrize(("path", "keys"), [shape[:2] for shape in SHAPES], ids=[shape[0] for shape in SHAPES])
async def test_a_stream_that_has_begun_ends_with_the_same(
    backend: ScriptedBackend, path: str, keys: dict[str, Any]
) -> None:
    backend.fail_at_step = 2
    async with client_of(backend) as client:
        response = await client.post(path, json={"model": "tiny", **keys, "stream": True})
    assert response.status_code == 200
    (last,) = [line for line in response.text.splitlines() if NOTHING_FITS_ERROR in line][-1:]
    told = json.loads(last.removeprefix("data: "))
    kind = {
        "/v1/completions": ("error", "type", "invalid_request_error"),
        "/v1/chat/completions": ("error", "type", "invalid_request_error"),
        "/v1/messages": ("error", "type", "invalid_request_error"),
        "/v1/responses": ("response", "status", "failed"),
        "/v2/chat": ("delta", "finish_reason", "ERROR"),
    }.get(path)
    if kind is None:
        assert told["error"] == NOTHING_FITS_ERROR
    else:
        assert told[kind[0]][kind[1]] == kind[2]
    if path == "/v1/responses":
        assert told["response"]["error"]["code"] == "invalid_prompt"


@pytest.mark.parametrize(("path", "keys"), [shape[:2] for shape in SHAPES], ids=[shape[0] for shape in SHAPES])
async def test_a_stream_that_has_not_begun_is_a_422_too(
    backend: ScriptedBackend, path: str, keys: dict[str, Any]
) -> None:
    async with client_of(backend) as client:
        response = await client.post(path, json={"model": "tiny", **keys, "stream": True})
    assert response.status_code == 422
    assert NOTHING_FITS_ERROR in response.text
