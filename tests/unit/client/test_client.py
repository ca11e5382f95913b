"""The Python client against the Gateway's own HTTP and gRPC: the same calls, answers and errors over both."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest

from serve_app.client import AsyncClient, Client
from serve_app.config.gateway import GatewayConfig
from serve_app.errors import (
    ModelNotFoundError,
    QueueFullError,
    RequestError,
    ShardLostError,
    TimeoutExceededError,
    UnauthenticatedError,
    UnavailableError,
)
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.key_file import new_key
from serve_app.protos import rayshard_pb2_grpc as services
from tests.fakes import ScriptedBackend, serving
from tests.unit.gateway.grpc.test_open_inference import Methods
from tests.unit.gateway.grpc.test_rayshard import Calls, backend
from tests.unit.gateway.http.test_app import until
from tests.unit.gateway.http.test_inference_routes import LABELS

T = TypeVar("T")
__all__ = ["backend"]  # a fixture


@dataclass
class Server:
    """A Gateway on both carriers."""

    addresses: dict[str, str]
    backend: ScriptedBackend
    key: str


@pytest.fixture
async def server(backend: ScriptedBackend, tmp_path: Path) -> AsyncIterator[Server]:
    key, line = new_key("name=web")
    keys = tmp_path / "keys"
    keys.write_text(f"{line}\n")
    plane = DataPlane(backend, GatewayConfig(api_keys_file=str(keys)))
    methods = Methods(plane)
    methods._keys = plane.keys
    grpc_server = grpc.aio.server()
    services.add_RayshardServicer_to_server(Calls(methods), grpc_server)  # type: ignore[no-untyped-call]
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    async with serving(build_http_app(plane)) as url:
        yield Server({"http": url, "grpc": f"grpc://127.0.0.1:{port}"}, backend, key)
    await grpc_server.stop(None)


@pytest.fixture(params=["http", "grpc"])
async def client(server: Server, request: pytest.FixtureRequest) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.addresses[request.param], api_key=server.key, timeout_s=20) as client:
        yield client


async def text_of(pieces: AsyncIterator[Any]) -> str:
    return "".join([piece.text async for piece in pieces])


async def test_every_call_has_its_answer(client: AsyncClient, server: Server) -> None:
    ids = server.backend.ids("abc")
    assert await text_of(client.generate(ids, max_tokens=len(ids))) == "abc"
    assert await text_of(client.generate("hello", model="tiny", max_tokens=5, seed=1, stop=["zz"]))
    reasons = [piece.finish_reason async for piece in client.chat([{"role": "user", "content": "hi"}], max_tokens=4)]
    assert [reason for reason in reasons if reason] == ["length"]
    vectors = await client.embed(["ab", "c"], dimensions=2)
    assert vectors.shape == (2, 2)
    (found,) = await client.classify(["ab"], model="colours", top_k=2)
    assert found.label in LABELS
    assert next(iter(found.scores)) == found.label
    array = np.array([[1, -2], [3, 4]], np.float32)
    made = await client.predict({"x": array}, model="module")
    assert np.array_equal(made["y"], array * 2)
    assert np.array_equal(made["n"], array > 0)


async def test_both_carriers_say_the_same(server: Server) -> None:
    made = []
    for address in server.addresses.values():
        async with AsyncClient(address, api_key=server.key) as client:
            text = await text_of(client.generate("hello", max_tokens=9, n=1, temperature=0))
            vectors = (await client.embed(["a b"])).tolist()
            made.append((text, vectors, (await client.classify(["c"]))[0].label))
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda client: text_of(client.generate("a", model="no")), ModelNotFoundError, "is not served"),
        (lambda client: text_of(client.generate("a", top_p=7)), RequestError, "top_p"),
        (lambda client: client.embed([]), RequestError, "input is empty"),
        (lambda client: client.predict({"y": np.ones((1, 2))}, model="module"), RequestError, "inputs.y is unknown"),
    ],
)
async def test_an_error_is_ours_with_the_servers_message(
    client: AsyncClient, call: Callable[[AsyncClient], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        await call(client)
    assert len(await client.embed(["a"])) == 1


@pytest.mark.parametrize("carrier", ["http", "grpc"])
async def test_a_key_that_is_not_known_is_told_at_once(server: Server, carrier: str) -> None:
    async with AsyncClient(server.addresses[carrier], api_key="wrong") as client:
        with pytest.raises(UnauthenticatedError, match="API key"):
            await client.embed(["a"])


async def test_a_busy_server_is_asked_again(client: AsyncClient, server: Server) -> None:
    server.backend.error = QueueFullError("busy", retry_after_s=1.0)
    asyncio.get_running_loop().call_later(0.5, setattr, server.backend, "error", None)
    assert len(await client.embed(["a"])) == 1
    server.backend.error = UnavailableError("away", retry_after_s=1.0)
    asyncio.get_running_loop().call_later(0.5, setattr, server.backend, "error", None)
    assert await text_of(client.generate("hello", max_tokens=5))


@pytest.mark.parametrize("carrier", ["http", "grpc"])
async def test_tries_have_an_end(server: Server, carrier: str) -> None:
    server.backend.error = QueueFullError("busy", retry_after_s=1.0)
    async with AsyncClient(server.addresses[carrier], api_key=server.key, max_retries=1) as client:
        with pytest.raises(QueueFullError):
            await client.embed(["a"])
    assert len(server.backend.infer_requests) == 2


async def test_a_stream_is_not_tried_again_once_it_has_begun(client: AsyncClient, server: Server) -> None:
    server.backend.error = ShardLostError("a shard died")
    server.backend.fail_at_step = 3
    pieces: list[str] = []

    async def read() -> None:
        async for piece in client.generate("hello", max_tokens=20):
            pieces.append(piece.text)

    with pytest.raises(UnavailableError, match="a shard died"):
        await read()
    assert pieces
    assert len(server.backend.requests) == 1


@pytest.mark.parametrize("carrier", ["http", "grpc"])
async def test_a_call_ends_with_its_time_and_frees_what_it_holds(server: Server, carrier: str) -> None:
    server.backend.step_s = 60
    async with AsyncClient(server.addresses[carrier], api_key=server.key, timeout_s=1) as client:
        with pytest.raises(TimeoutExceededError):
            await text_of(client.generate("a", max_tokens=500))
    await until(lambda: server.backend.num_open == 0)


async def test_a_stream_that_is_left_is_aborted(client: AsyncClient, server: Server) -> None:
    pieces = client.generate("a", max_tokens=500)
    await anext(pieces)
    await pieces.aclose()  # type: ignore[attr-defined]
    await until(lambda: server.backend.num_open == 0)
    assert server.backend.num_aborted == 1


@pytest.mark.parametrize("carrier", ["http", "grpc"])
async def test_the_waiting_client_does_the_same(server: Server, carrier: str) -> None:
    def work() -> tuple[str, tuple[int, ...], str | None]:
        with Client(server.addresses[carrier], api_key=server.key) as client:
            text = "".join(piece.text for piece in client.generate("hello", max_tokens=5))
            for _piece in client.generate("hello", max_tokens=500):
                break  # left: aborted
            chat = "".join(piece.text for piece in client.chat([{"role": "user", "content": "a"}], max_tokens=3))
            assert chat
            client.predict({"x": np.ones((1, 2), np.float32)}, model="module")
            with pytest.raises(ModelNotFoundError):
                client.embed(["a"], model="no")
            return text, client.embed(["a", "b"]).shape, client.classify(["a"])[0].label

    text, shape, label = await asyncio.to_thread(work)
    assert text
    assert (shape, label in LABELS) == ((2, 3), True)
    await until(lambda: server.backend.num_open == 0)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    for address in ("http://127.0.0.1:9", "grpc://127.0.0.1:9"):
        async with AsyncClient(address, max_retries=0) as client:
            with pytest.raises(UnavailableError):
                await client.embed(["a"])


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://x", "grpc://", ""])
def test_an_address_that_cannot_be_called_is_refused(address: str) -> None:
    with pytest.raises(RequestError, match="write http://host:port or grpc://host:port"):
        Client(address)


@pytest.mark.process
def test_neither_torch_nor_ray_is_loaded() -> None:
    code = (
        "import sys, serve_app.client; print(sorted({'torch', 'ray', 'transformers', 'starlette'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
