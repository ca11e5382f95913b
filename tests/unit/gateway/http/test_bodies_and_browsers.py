"""Compressed bodies on every path, and pages of other origins."""

import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import RequestError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.http.content_encoding import ContentDecoder
from tests.fakes import ScriptedBackend, save_model_dir

COMPLETIONS = "/v1/completions"
PAGE = "http://localhost:3000"
CONTENT = json.dumps({"prompt": "hello", "max_tokens": 1}).encode()
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


@asynccontextmanager
async def calling(directory: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = build_http_app(DataPlane(ScriptedBackend(save_model_dir(directory)), GatewayConfig(**settings)))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client,
    ):
        yield client


def packed(content: bytes) -> bytes:
    """The same bytes whenever it is called: they name tests."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", packed(CONTENT)),
        ("GZIP", packed(CONTENT)),
        ("x-gzip", packed(CONTENT)),
        ("gzip", packed(CONTENT[:9]) + packed(CONTENT[9:])),
        ("deflate", zlib.compress(CONTENT)),
        ("identity", CONTENT),
        ("", CONTENT),
    ],
)
async def test_compressed_bodies_are_read(tmp_path: Path, encoding: str, content: bytes) -> None:
    async with calling(tmp_path) as client:
        for path in (COMPLETIONS, "/v1/tokenize"):
            body = content if path == COMPLETIONS else packed(b'{"prompt": "a"}')
            headers = {"content-encoding": encoding if path == COMPLETIONS else "gzip"}
            answer = await client.post(path, content=body, headers=headers)
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress"])
async def test_other_encodings_get_415_and_are_told_which_are_read(tmp_path: Path, encoding: str) -> None:
    async with calling(tmp_path) as client:
        answer = await client.post(COMPLETIONS, content=CONTENT, headers={"content-encoding": encoding})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate")
    assert answer.json()["error"]["param"] == "content-encoding"


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (packed(b"0" * 50_000_000), 413, "larger than max_request_bytes=1000"),
        (packed(b"0" * 1001), 413, "larger than max_request_bytes=1000"),
        (packed(CONTENT)[:-4], 400, "ends too early"),
        (CONTENT, 400, "is not gzip"),
        (b"", 400, "ends too early"),
        (packed(CONTENT) + b"more", 400, "is not gzip"),
        (packed(b"") * 40, 400, "body is empty"),
    ],
)
async def test_what_lies_compressed_is_refused(tmp_path: Path, content: bytes, status: int, message: str) -> None:
    async with calling(tmp_path, max_request_bytes=1000) as client:
        answer = await client.post(COMPLETIONS, content=content, headers={"content-encoding": "gzip"})
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), answer.text


def test_a_bomb_takes_no_more_memory_than_a_body_may() -> None:
    bomb = packed(b"0" * 100_000_000)
    tracemalloc.start()
    assert len(ContentDecoder("gzip").feed(bomb, 100_000)) == 100_001
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_body_of_too_many_members_is_refused() -> None:
    with pytest.raises(RequestError, match="goes on after the end"):
        ContentDecoder("gzip").feed(packed(b"") * 2000, 1000)


async def test_pages_of_allowed_origins_may_call(tmp_path: Path) -> None:
    async with calling(tmp_path, cors_allowed_origins=[PAGE]) as client:
        asked = await client.options(COMPLETIONS, headers=PREFLIGHT)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert asked.headers["access-control-allow-headers"] == "authorization,content-type"
        for answer in (
            await client.get("/v1/models", headers={"origin": PAGE}),
            await client.post(COMPLETIONS, content=b"{", headers={"origin": PAGE}),
        ):
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
        other = {"origin": "http://evil.example"}
        assert "access-control-allow-origin" not in (await client.get("/v1/models", headers=other)).headers
        assert (await client.options(COMPLETIONS, headers={**PREFLIGHT, **other})).status_code == 400


async def test_a_page_asks_without_a_key_and_calls_with_one(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("")
    async with calling(tmp_path, cors_allowed_origins=["*"], api_keys_file=str(keys)) as client:
        assert (await client.options(COMPLETIONS, headers=PREFLIGHT)).status_code == 200
        refused = await client.post(COMPLETIONS, content=CONTENT, headers={"origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "*")


async def test_without_the_setting_pages_may_not_call(tmp_path: Path) -> None:
    async with calling(tmp_path) as client:
        for answer in (
            await client.options(COMPLETIONS, headers=PREFLIGHT),
            await client.get("/v1/models", headers={"origin": PAGE}),
        ):
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["localhost:3000", "http://a/", "http://a/b", "http://*.a", "", "HTTP://A", "null"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        GatewayConfig(cors_allowed_origins=[origin])
