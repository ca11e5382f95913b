"""The Open Inference Protocol on a real cluster: tritonclient and grpcio through Serve's proxies."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
import tritonclient.http as triton
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from torch import nn

from serve_app.protos import open_inference_pb2 as pb
from serve_app.protos import open_inference_pb2_grpc as services
from tests.integration.serve_cluster import GATEWAY, ServeCluster, free_port, model_application
from tests.integration.test_batch_models import application, minilm_directory
from tests.unit.test_torch_model import save

SERVICES = ["serve_app.protos.open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"]
CALLS = Path(__file__).with_name("triton_grpc_calls.py")


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def cluster(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeCluster]:
    module = tmp_path_factory.mktemp("module")
    torch.manual_seed(0)
    save(nn.Sequential(nn.Linear(4, 2)), module)
    ports: dict[str, Any] = {
        "inputs": {"input": {"dtype": "float32", "shape": ["batch", 4]}},
        "outputs": {"output": {"dtype": "float32", "shape": ["batch", 2]}},
        "arguments": {"in_features": 4, "out_features": 2},
        "architecture": "tests.user_modules:Sized",
    }
    arguments: dict[str, Any] = {"queue_timeout_s": 120.0, "max_request_bytes": 64 * 2**20}
    cluster = ServeCluster(
        [
            {**GATEWAY, "args": arguments},
            model_application("demo", parallel={"pipeline": 2}),
            application("minilm", minilm_directory(), "embed"),
            application("linear", module, "predict", **ports),
        ],
        grpc_options={"port": port, "grpc_servicer_functions": SERVICES, "enable_reflection": True},
    )
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.mark.timeout(400)
def test_tritonclient_over_grpc(cluster: ServeCluster, port: int) -> None:
    environment = {**os.environ, "TEST_GRPC_ADDRESS": f"127.0.0.1:{port}", "TEST_HTTP_URL": cluster.url}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(CALLS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout


def test_tritonclient_over_http(cluster: ServeCluster) -> None:
    array = np.ones((3, 4), np.float32)
    given = triton.InferInput("input", [3, 4], "FP32")
    given.set_data_from_numpy(array)
    with triton.InferenceServerClient(cluster.url.removeprefix("http://")) as client:
        assert client.is_server_ready()
        assert client.infer("linear", [given]).as_numpy("output").shape == (3, 2)


def test_plain_grpcio_with_typed_contents(cluster: ServeCluster, port: int) -> None:
    assert cluster.is_healthy()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = services.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        request = pb.ModelInferRequest(model_name="linear")
        tensor = request.inputs.add(name="input", datatype="FP32", shape=[1, 4])
        tensor.contents.fp32_contents.extend([1, 2, 3, 4])
        answer = stub.ModelInfer(request, timeout=30)
        assert list(answer.outputs[0].shape) == [1, 2]
        assert len(answer.raw_output_contents[0]) == 8
        tensor.contents.fp32_contents.append(5)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request, timeout=30)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "20 bytes, its shape [1, 4] says 16" in caught.value.details()


def test_reflection_tells_the_service(cluster: ServeCluster, port: int) -> None:
    assert cluster.is_healthy()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        name = "inference.GRPCInferenceService"
        asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)]
        (answer,) = stub.ServerReflectionInfo(iter(asked))
    file = descriptor_pb2.FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
    assert [method.name for method in file.service[0].method][-1] == "ModelStreamInfer"


def test_no_text_of_a_call_is_found_in_any_log(cluster: ServeCluster, port: int) -> None:
    canary = b"canary5512"
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = services.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        codes = []
        for model, name in (("demo", "text_input"), ("minilm", "text_input"), ("demo", "canary5512"), ("linear", "x")):
            request = pb.ModelInferRequest(model_name=model, id="canary5512")
            tensor = request.inputs.add(name=name, datatype="BYTES", shape=[1])
            tensor.contents.bytes_contents.append(canary)
            call = stub.ModelInfer.future(request, timeout=30)
            codes.append(call.code().name)
    assert codes == ["OK", "OK", "INVALID_ARGUMENT", "INVALID_ARGUMENT"]
    files = [path for path in cluster.directory.rglob("*") if path.is_file()]
    assert not [path for path in files if canary in path.read_bytes()]
