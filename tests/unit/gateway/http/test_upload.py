"""POST /v1/files under hostile bodies: nothing too large is kept, nothing half is there, memory stays small."""

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.batch_calls import gateway
from tests.fakes import ScriptedBackend

MAX_BYTES = 2_000_000
FORM = {"content-type": "multipart/form-data; boundary=XX"}
HEAD = b'--XX\r\ncontent-disposition: form-data; name="file"; filename="lines.jsonl"\r\n\r\n'
PURPOSE = b'\r\n--XX\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch'
END = b"\r\n--XX--\r\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "batches"


@pytest.fixture
async def client(backend: ScriptedBackend, directory: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway(
        backend, directory, batches_max_file_bytes=MAX_BYTES, batches_max_stored_bytes=3 * MAX_BYTES
    ) as client:
        yield client


def kept(directory: Path) -> list[int]:
    """Sizes of all files of requests on disk."""
    return [path.stat().st_size for path in directory.rglob("content.jsonl")]


async def test_a_file_goes_to_disk_as_it_is(client: httpx.AsyncClient, directory: Path) -> None:
    content = bytes(range(256)) * 4000 + b"\r\n--X"
    response = await client.post("/v1/files", content=HEAD + content + PURPOSE + END, headers=FORM)
    assert response.status_code == 200, response.text
    found = await client.get(f"/v1/files/{response.json()['id']}/content")
    assert found.content == content
    assert kept(directory) == [len(content)]


async def test_fields_may_come_before_the_file_and_in_pieces(client: httpx.AsyncClient) -> None:
    body = PURPOSE[2:] + b"\r\n" + HEAD + b"{}\n" + END

    async def pieces() -> AsyncIterator[bytes]:
        for index in range(len(body)):
            yield body[index : index + 1]

    response = await client.post("/v1/files", content=pieces(), headers=FORM)
    assert (response.status_code, response.json()["bytes"]) == (200, 3)


async def test_a_body_may_be_compressed(client: httpx.AsyncClient) -> None:
    body = gzip.compress(HEAD + b"{}\n" + PURPOSE + END)
    response = await client.post("/v1/files", content=body, headers={**FORM, "content-encoding": "gzip"})
    assert (response.status_code, response.json()["bytes"]) == (200, 3)


async def test_a_gigabyte_that_is_announced_is_refused_before_it_is_read(
    client: httpx.AsyncClient, directory: Path
) -> None:
    was_read = False

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal was_read
        was_read = True
        yield HEAD

    response = await client.post("/v1/files", content=pieces(), headers={**FORM, "content-length": str(10**9)})
    assert response.status_code == 413
    assert f"larger than the {MAX_BYTES} bytes" in response.json()["error"]["message"]
    assert not was_read
    assert kept(directory) == []


@pytest.mark.parametrize("is_compressed", [False, True])
async def test_a_gigabyte_that_is_not_announced_is_refused_when_it_is_counted(
    client: httpx.AsyncClient, directory: Path, is_compressed: bool
) -> None:
    num_sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal num_sent
        piece = b"x" * 65_536
        if is_compressed:
            yield gzip.compress(HEAD + b"x" * 10**7)
            return
        yield HEAD
        while num_sent < 10**9:
            num_sent += len(piece)
            yield piece

    headers = {**FORM, "content-encoding": "gzip"} if is_compressed else FORM
    tracemalloc.start()
    response = await client.post("/v1/files", content=pieces(), headers=headers)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert response.status_code == 413
    assert num_sent < MAX_BYTES + 1_000_000
    assert kept(directory) == []
    assert peak < 30_000_000


async def test_a_key_has_so_much_room_and_gets_it_back(client: httpx.AsyncClient, directory: Path) -> None:
    body = HEAD + b"x" * (MAX_BYTES - 1000) + PURPOSE + END
    answers = [await client.post("/v1/files", content=body, headers=FORM) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 413]
    assert sum(kept(directory)) <= 3 * MAX_BYTES
    await client.delete(f"/v1/files/{answers[0].json()['id']}")
    assert (await client.post("/v1/files", content=body, headers=FORM)).status_code == 200


async def test_a_client_that_leaves_leaves_nothing(client: httpx.AsyncClient, directory: Path) -> None:
    begun = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield HEAD + b"x" * 1_500_000
        begun.set()
        await asyncio.Event().wait()

    sending = asyncio.create_task(client.post("/v1/files", content=pieces(), headers=FORM))
    await begun.wait()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert kept(directory) == []
    assert (await client.get("/v1/files")).json()["data"] == []


@pytest.mark.parametrize(
    ("body", "headers", "part"),
    [
        (b"{}", {"content-type": "application/json"}, "multipart/form-data"),
        (b"", {}, "multipart/form-data"),
        (b"x", {"content-type": "multipart/form-data"}, "has no boundary"),
        (b"x", {"content-type": f"multipart/form-data; boundary={'x' * 5000}"}, "not multipart/form-data"),
        (b"no boundary at all", FORM, "not multipart/form-data"),
        (HEAD + b"{}", FORM, "ends too early"),
        (PURPOSE[2:] + END, FORM, "file is missing"),
        (HEAD + b"{}" + END, FORM, "purpose is missing"),
        (HEAD + b"{}" + PURPOSE.replace(b"batch", b"fine-tune") + END, FORM, "purpose='fine-tune'"),
        (HEAD + b"{}" + PURPOSE + PURPOSE + END, FORM, "purpose stands twice"),
        (HEAD + b"{}\r\n" + HEAD + b"{}" + PURPOSE + END, FORM, "file stands twice"),
        (HEAD.replace(b'; filename="lines.jsonl"', b"") + b"{}" + PURPOSE + END, FORM, "'file' is unknown"),
        (HEAD + b"{}" + PURPOSE.replace(b'"purpose"', b'"colour"') + END, FORM, "'colour' is unknown"),
        (HEAD + b"{}" + PURPOSE.replace(b"batch", b"x" * 300) + END, FORM, "longer than 256 bytes"),
        (b"--XX\r\n" + b"x: y\r\n" * 50 + b"\r\n" + END, FORM, "not multipart/form-data"),
        (b"--XX\r\nx: " + b"y" * 10_000 + b"\r\n\r\n" + END, FORM, "not multipart/form-data"),
    ],
)
async def test_a_body_that_is_not_a_file_is_refused(
    client: httpx.AsyncClient, directory: Path, body: bytes, headers: dict[str, str], part: str
) -> None:
    response = await client.post("/v1/files", content=body, headers=headers)
    assert response.status_code in (400, 415)
    assert part in response.json()["error"]["message"]
    assert kept(directory) == []


@pytest.mark.parametrize("seconds", ["3599", "2592001", "-5", "x", "9" * 30])
async def test_a_time_that_cannot_be_is_refused(client: httpx.AsyncClient, seconds: str) -> None:
    response = await client.post(
        "/v1/files",
        files={"file": ("lines.jsonl", b"{}")},
        data={"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": seconds},
    )
    assert response.status_code == 400
    assert "is not an integer from 3600 to 2592000" in response.json()["error"]["message"]


async def test_a_page_of_another_site_cannot_send_a_file(client: httpx.AsyncClient) -> None:
    body = HEAD + b"{}" + PURPOSE + END
    response = await client.post("/v1/files", content=body, headers={**FORM, "origin": "https://elsewhere.example"})
    assert response.status_code == 403
    other = await client.post("/v1/batches", content=body, headers=FORM)
    assert other.status_code == 415
