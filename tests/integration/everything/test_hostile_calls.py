"""Calls that lie, leave, never read or never end, over both carriers; then everything is as it was before."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest

from serve_app.protos import open_inference_pb2 as pb
from serve_app.protos import open_inference_pb2_grpc as services
from serve_app.protos import rayshard_pb2 as rayshard_pb
from serve_app.protos import rayshard_pb2_grpc as rayshard_services
from tests.integration.everything.calls import post
from tests.integration.serve_cluster import ServeCluster, assert_within

MAX_REQUEST_BYTES = 64 * 2**20  # of this cluster's Gateway
NUM_HALF_OPEN = 2000
NUM_AT_ONCE = 100  # gRPC's server cancels some of the calls that come while a thousand wait to be accepted
NUM_STORMS = 4
GIVE_BACK_S = 3.0  # a copy that is idle for a second gives back what it has freed
MAX_GROWTH_BYTES = 40 * 2**20  # a storm; its large call alone has 48 MiB of tensors, and freed memory comes and goes
ENDLESS: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True, "temperature": 1}

pytestmark = pytest.mark.timeout(600)  # the first test of a file may be the one that starts the cluster


@pytest.fixture
def channel(port: int) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


def rows(num_rows: int, **more: Any) -> Any:
    request = pb.ModelInferRequest(model_name="linear", **more)
    request.inputs.add(name="input", datatype="FP32", shape=[num_rows, 4])
    return request


def infer(channel: grpc.Channel, request: Any, **options: Any) -> grpc.Call:
    stub = services.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
    return stub.ModelInfer.future(request, **{"timeout": 60, **options})


def generate(channel: grpc.Channel, **options: Any) -> Any:
    stub = rayshard_services.RayshardStub(channel)  # type: ignore[no-untyped-call]  # generated
    sampling = rayshard_pb.SamplingParams(**ENDLESS)
    return stub.Generate(rayshard_pb.GenerateRequest(model="demo", text="abc", sampling=sampling), **options)


def code_at_end(stream: Any) -> grpc.StatusCode:
    """How a stream ends. What came before is read: gRPC gives the status after the last message, never ahead of it."""
    with contextlib.suppress(grpc.RpcError):
        for _ in stream:
            pass
    code: grpc.StatusCode = stream.code()
    return code


def is_served(cluster: ServeCluster, channel: grpc.Channel) -> bool:
    request = rows(1)
    request.raw_input_contents.append(bytes(16))
    is_answered = infer(channel, request).code() is grpc.StatusCode.OK
    return is_answered and post(cluster, "/predict", model="linear", inputs={"input": [[1, 2, 3, 4]]}) is not None


def is_idle(cluster: ServeCluster) -> bool:
    copies = cluster.copies("demo")
    return bool(copies) and all(
        copy["num_running"] == copy["num_waiting"] == 0 and copy["num_free_blocks"] == copy["num_blocks"]
        for copy in copies
    )


def seconds_until_idle(cluster: ServeCluster) -> float:
    return cluster.wait_until(lambda: is_idle(cluster), 60, "idle blocks")


def assert_idle_within(limit_s: float, cluster: ServeCluster, call: Callable[[], None]) -> None:
    """The blocks of what a call leaves are soon free."""

    def measure_s() -> float:
        call()
        return seconds_until_idle(cluster)

    assert_within(limit_s, measure_s)


@pytest.mark.parametrize("num_claimed", [1, 3, 2**20, 2**62])
def test_sizes_that_lie_over_grpc(cluster: ServeCluster, channel: grpc.Channel, num_claimed: int) -> None:
    request = rows(num_claimed)
    request.raw_input_contents.append(bytes(4 * 4 * 2))  # two rows
    call = infer(channel, request)
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "32 bytes" in call.details() or "shape" in call.details()
    assert is_served(cluster, channel)


@pytest.mark.parametrize("claimed", [-1, 16, 2**40])
def test_sizes_that_lie_over_http(cluster: ServeCluster, channel: grpc.Channel, claimed: int) -> None:
    tensor = {"name": "input", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": claimed}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    answer = httpx.post(f"{cluster.url}/v2/models/linear/infer", content=head + bytes(32), headers=headers, timeout=30)
    assert answer.status_code == 400, answer.text
    assert is_served(cluster, channel)


def test_messages_above_the_limit(cluster: ServeCluster, channel: grpc.Channel) -> None:
    request = rows(MAX_REQUEST_BYTES // 16)
    request.raw_input_contents.append(bytes(MAX_REQUEST_BYTES))  # and some bytes around it
    call = infer(channel, request)
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"max_request_bytes={MAX_REQUEST_BYTES}" in call.details()
    answer = httpx.post(f"{cluster.url}/predict", content=bytes(MAX_REQUEST_BYTES + 1), timeout=60)
    assert answer.status_code == 413
    assert f"max_request_bytes={MAX_REQUEST_BYTES}" in answer.json()["error"]["message"]
    assert is_served(cluster, channel)


def test_models_and_versions_that_are_not_there(cluster: ServeCluster, channel: grpc.Channel) -> None:
    unknown = [pb.ModelInferRequest(model_name="no-such"), rows(1, model_version="7")]
    unknown[1].raw_input_contents.append(bytes(16))
    assert {infer(channel, request).code() for request in unknown} == {grpc.StatusCode.NOT_FOUND}
    for path in ("/v2/models/no-such/infer", "/v2/models/linear/versions/7/infer"):
        assert httpx.post(f"{cluster.url}{path}", json={"inputs": []}, timeout=30).status_code == 404
    assert is_served(cluster, channel)


def test_metadata_bombs(cluster: ServeCluster, channel: grpc.Channel) -> None:
    bombs = [[("x-bomb", "a" * 2**20)], [(f"x-{index}", "a" * 64) for index in range(4096)]]
    for bomb in bombs:
        assert infer(channel, rows(1), metadata=bomb).code() is not grpc.StatusCode.OK
        with contextlib.suppress(httpx.TransportError):  # the connection may be closed while we still send
            assert httpx.get(f"{cluster.url}/v1/models", headers=dict(bomb), timeout=30).status_code >= 400
    assert is_served(cluster, channel)


def test_truncated_frames(cluster: ServeCluster, channel: grpc.Channel, port: int) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings, cut_headers = b"\0\0\0\4\0\0\0\0\0", b"\0\xff\xff\1\4\0\0\0\1" + b"\x83" * 10
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
    chunked = b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n{"
    for target, content in (
        (port, b"\x16\x03\x01 no TLS here"),
        (port, preface[:10]),
        (port, preface + settings + cut_headers),
        (port, preface + b"\xff\xff\xff\0\0\0\0\0\1"),
        (cluster.port, head + b'{"text'),
        (cluster.port, chunked),
        (cluster.port, b"\0" * 4096),
    ):
        with socket.create_connection(("127.0.0.1", target), timeout=10) as connection:
            connection.sendall(content)
        assert is_served(cluster, channel)


def test_deadlines_of_a_millisecond(cluster: ServeCluster, channel: grpc.Channel) -> None:
    request = rows(1)
    request.raw_input_contents.append(bytes(16))
    limit = [("x-request-timeout-ms", "1")]
    late = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK)  # a module of one row may be done in time
    assert infer(channel, request, timeout=0.001).code() in late
    assert infer(channel, request, metadata=limit).code() in late
    assert code_at_end(generate(channel, metadata=limit)) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert_idle_within(1, cluster, lambda: post_late(cluster, limit_ms=1))
    assert is_served(cluster, channel)


def post_late(cluster: ServeCluster, limit_ms: int) -> None:
    body = {"model": "demo", "prompt": "abc", **ENDLESS}
    limit = {"x-request-timeout-ms": str(limit_ms)}
    assert httpx.post(f"{cluster.url}/v1/completions", json=body, headers=limit, timeout=60).status_code == 504


def test_fifty_milliseconds_for_nine_hundred_tokens(cluster: ServeCluster, channel: grpc.Channel) -> None:
    def over_grpc() -> None:
        stream = generate(channel, metadata=[("x-request-timeout-ms", "50")])
        assert code_at_end(stream) is grpc.StatusCode.DEADLINE_EXCEEDED

    assert_idle_within(1, cluster, lambda: post_late(cluster, limit_ms=50))
    assert_idle_within(1, cluster, over_grpc)


@pytest.mark.parametrize("num_read", [None, 0, 1, 20])
def test_a_call_that_is_cancelled_in_any_phase(
    cluster: ServeCluster, channel: grpc.Channel, num_read: int | None
) -> None:
    def over_grpc() -> None:
        stream = generate(channel)
        if num_read is not None:  # otherwise before it has left
            time.sleep(0.05)
        for _ in range(num_read or 0):
            next(stream)
        stream.cancel()

    def over_http() -> None:
        body = {"model": "demo", "prompt": "abc", "stream": True, **ENDLESS}
        with httpx.stream("POST", f"{cluster.url}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            for _ in range(num_read or 0):
                next(lines)

    assert_idle_within(2, cluster, over_grpc)
    assert_idle_within(2, cluster, over_http)


def half_open(cluster: ServeCluster, port: int) -> None:
    """Streams that say nothing, and connections in the middle of a body, all at once; then all leave."""
    with contextlib.ExitStack() as connections:
        for _ in range(NUM_HALF_OPEN // 2):
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", cluster.port), timeout=30))
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
        asyncio.run(open_streams(cluster, port, NUM_HALF_OPEN // 2))


async def open_streams(cluster: ServeCluster, port: int, num_streams: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = services.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        streams: list[Any] = []
        while len(streams) < num_streams:
            wave = [stub.ModelStreamInfer() for _ in range(NUM_AT_ONCE)]
            for stream in wave:
                with contextlib.suppress(grpc.aio.AioRpcError):  # those above one caller's limit may be over by now
                    await stream.wait_for_connection()  # only until this side has sent its metadata
            await stub.ServerLive(pb.ServerLiveRequest(), timeout=60)  # answered after those before it were accepted
            streams += wave
        body = {"model": "linear", "inputs": {"input": [[1, 2, 3, 4]]}}
        async with httpx.AsyncClient(timeout=60) as client:
            assert (await client.post(f"{cluster.url}/predict", json=body)).status_code == 200
        for stream in streams:
            stream.cancel()


def unread(cluster: ServeCluster, channel: grpc.Channel) -> None:
    """Streams of which nothing is read, over both carriers; others are answered meanwhile."""
    streams = [generate(channel) for _ in range(8)]
    head = json.dumps({"model": "demo", "prompt": "abc", "stream": True, **ENDLESS}).encode()
    connections = []
    for _ in range(8):
        connection = socket.create_connection(("127.0.0.1", cluster.port), timeout=10)
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(head) + head)
        connections.append(connection)
    assert cluster.complete("demo", "abc", max_tokens=4).status_code == 200
    for stream in streams:
        stream.cancel()
    for connection in connections:
        connection.close()


def large(port: int) -> None:
    """32 MB there and 16 MB back."""
    request = rows(2**21)
    request.raw_input_contents.append(np.ones((2**21, 4), np.float32).tobytes())
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1)]) as channel:
        assert len(infer(channel, request).result().raw_output_contents[0]) == 2**24


def measured(servers: list[psutil.Process]) -> tuple[int, int]:
    """Memory that is theirs alone, in bytes, and open files."""
    return sum(one.memory_full_info().uss for one in servers), sum(one.num_fds() for one in servers)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_returns_to_where_it_was(cluster: ServeCluster, channel: grpc.Channel, port: int) -> None:
    titles = ("ray::ProxyActor", "ray::ServeReplica:gateway", "ray::ServeReplica:demo:", "ray::ServeReplica:linear")
    servers = [psutil.Process(pid) for title in titles for pid in cluster.pids(title)]
    assert len(servers) == len(titles)

    def storm() -> int:
        half_open(cluster, port)
        unread(cluster, channel)
        large(port)
        seconds_until_idle(cluster)
        time.sleep(GIVE_BACK_S)
        return measured(servers)[0]

    storm()
    bytes_before, files_before = storm(), measured(servers)[1]  # what is allocated once and kept is there
    sizes = [storm() for _ in range(NUM_STORMS)]
    print(f"MiB before: {bytes_before >> 20}, after each storm: {[size >> 20 for size in sizes]}")
    most = bytes_before + NUM_STORMS * MAX_GROWTH_BYTES
    cluster.wait_until(lambda: measured(servers)[0] < most, 60, f"memory below {most >> 20} MiB")
    cluster.wait_until(lambda: measured(servers)[1] <= files_before + 8, 60, "closed sockets")
    assert is_served(cluster, channel)
