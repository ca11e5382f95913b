"""Serve's throughput mode with HAProxy in front: what `rayshard serve` runs on loopback. Its processes are traced."""

import re
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
import torch
import tritonclient.http as triton

from serve_app.cli.serve_process import SHUTDOWN_S
from serve_app.cli.throughput_profile import find_software
from serve_app.protos import open_inference_pb2 as pb
from serve_app.protos import open_inference_pb2_grpc as services
from serve_app.protos import rayshard_pb2 as rayshard_pb
from serve_app.protos import rayshard_pb2_grpc as rayshard_services
from tests.integration.demo.streams import start_streams, wait_for_ends
from tests.integration.everything.conftest import LINEAR, SERVICES
from tests.integration.serve_cluster import GATEWAY, LEFT_S, ServeCluster, free_port, left_after, model_application
from tests.otlp_collector import Collector, collecting
from tests.spans import SAMPLED, SPAN_ID, TRACE_ID
from tests.unit.models.test_torch_model import save
from tests.user_modules import Sized

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
HAPROXY = str(find_software({}).haproxy)
NUM_ROWS = 2**21  # of four float32: 32 MB there, 16 MB back


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, port: int, collector: Collector) -> Iterator[ServeCluster]:
    directory = tmp_path_factory.mktemp("linear")
    torch.manual_seed(0)
    save(Sized(4, 2), directory)
    linear = {**LINEAR, "args": {**LINEAR["args"], "source": str(directory)}}
    gateway = {**GATEWAY, "args": {"queue_timeout_s": 120.0, "max_request_bytes": 64 * 2**20}}
    options = {"port": port, "grpc_servicer_functions": SERVICES}
    tracing = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    running = ServeCluster([gateway, model_application("demo"), linear], options, tracing)
    running.wait_until(running.is_healthy, 120, "health")
    yield running
    running.stop()


def test_large_tensors_pass_over_http(cluster: ServeCluster) -> None:
    given = triton.InferInput("input", [NUM_ROWS, 4], "FP32")
    given.set_data_from_numpy(np.ones((NUM_ROWS, 4), np.float32), binary_data=True)
    with triton.InferenceServerClient(cluster.url.removeprefix("http://"), network_timeout=120) as client:
        assert client.infer("linear", [given]).as_numpy("output").shape == (NUM_ROWS, 2)


def test_large_tensors_pass_over_grpc(cluster: ServeCluster, port: int) -> None:
    assert cluster.is_healthy()
    request = pb.ModelInferRequest(model_name="linear")
    request.inputs.add(name="input", datatype="FP32", shape=[NUM_ROWS, 4])
    request.raw_input_contents.append(np.ones((NUM_ROWS, 4), np.float32).tobytes())
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        stub = services.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        answer = stub.ModelInfer(request, timeout=120)
    assert len(answer.raw_output_contents[0]) == NUM_ROWS * 2 * 4


def test_a_stream_and_its_failure_are_those_of_plain_serve(cluster: ServeCluster, port: int) -> None:
    assert cluster.is_healthy()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rayshard_services.RayshardStub(channel)  # type: ignore[no-untyped-call]  # generated
        sampling = rayshard_pb.SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
        pieces = list(stub.Generate(rayshard_pb.GenerateRequest(model="demo", text="abc abc", sampling=sampling)))
        assert pieces[-1].usage.completion_tokens == 24
        unknown = stub.Generate(rayshard_pb.GenerateRequest(model="no-such", text="a"), timeout=30)
        assert unknown.code() is grpc.StatusCode.NOT_FOUND
        assert "is not served" in unknown.details()
        late = rayshard_pb.SamplingParams(max_tokens=500, temperature=0, ignore_eos=True)
        limit = [("x-request-timeout-ms", "50")]
        stream = stub.Generate(rayshard_pb.GenerateRequest(model="demo", text="a", sampling=late), metadata=limit)
        with pytest.raises(grpc.RpcError):
            list(stream)  # tokens that came in time stand before the status
        assert stream.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_none_of_its_ports_is_reached_from_elsewhere(cluster: ServeCluster, port: int) -> None:
    """What listens on every interface answers at 127.0.0.2 too."""
    assert "Serve's throughput profile" in cluster.output
    started = re.compile(r"Started HTTP server on port (\d+) and gRPC server on port (\d+)")
    cluster.wait_until(lambda: started.search(cluster.log) is not None, 60, "the log's lines")  # Ray brings them later
    replicas = started.findall(cluster.log)
    ports = {cluster.port, port, *(int(one) for pair in replicas for one in pair)}
    assert len(ports) > 2  # HAProxy's two, and those of the replicas
    assert [one for one in ports if not is_open("127.0.0.1", one)] == []
    assert [one for one in ports if is_open("127.0.0.2", one)] == []
    assert {address.ip for pid in cluster.pids(HAPROXY) for address in listening(pid)} == {"127.0.0.1"}


def listening(pid: int) -> set[Any]:
    """Where it listens; an HAProxy that has handed over to the next one may have ended."""
    try:
        return {one.laddr for one in psutil.Process(pid).net_connections() if one.status == psutil.CONN_LISTEN}
    except psutil.NoSuchProcess:
        return set()


def is_open(host: str, port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as client:
        client.settimeout(5)
        return client.connect_ex((host, port)) == 0


def test_a_clients_trace_reaches_from_its_call_to_the_steps_of_the_shards(
    cluster: ServeCluster, collector: Collector
) -> None:
    body = {"model": "demo", "prompt": "date jan 8 2038 =", "temperature": 0, "max_tokens": 32}
    assert httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=60).status_code == 200  # nobody asks for it
    assert httpx.post(f"{cluster.url}/v1/completions", json=body, headers=SAMPLED, timeout=60).status_code == 200
    names = ["step", "generate demo", "text_completion demo", "POST /v1/completions"]  # each process sends its own
    cluster.wait_until(lambda: set(names) <= {one.span.name for one in collector.spans}, 60, "the spans")
    assert {one.span.trace_id.hex() for one in collector.spans} == {TRACE_ID}
    by_id = {one.span.span_id: one for one in collector.spans}
    step = next(one for one in collector.spans if one.span.name == "step")
    above = [step]
    while above[-1].span.parent_span_id in by_id:
        above.append(by_id[above[-1].span.parent_span_id])
    assert above[-1].span.parent_span_id.hex() == SPAN_ID
    assert [one.span.name for one in above] == names
    assert all(one.span.start_time_unix_nano <= step.span.start_time_unix_nano for one in above)


def test_when_the_command_itself_is_killed_a_stream_ends_and_no_process_is_left(cluster: ServeCluster) -> None:
    streams = start_streams(cluster, 1, num_tokens=400)
    started = cluster.kill_command()
    assert wait_for_ends(streams, 60) == ["done"]
    assert left_after(started, SHUTDOWN_S + LEFT_S) == []
