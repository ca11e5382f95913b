"""Clients that others wrote, and our own, against one running server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import openai
import pytest
import tritonclient.http as triton
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from openai.types.chat import ChatCompletionMessageParam

from serve_app.client import Client
from serve_app.errors import ModelNotFoundError
from serve_app.protos import open_inference_pb2 as pb
from serve_app.protos import open_inference_pb2_grpc as services
from serve_app.protos import rayshard_pb2 as rayshard_pb
from serve_app.protos import rayshard_pb2_grpc as rayshard_services
from tests.integration.everything.calls import post, vectors
from tests.integration.serve_cluster import ROOT, ServeCluster

TRITON_CALLS = Path(__file__).with_name("triton_grpc_calls.py")
OTHER_CALLS = Path(__file__).with_name("other_client_calls.py")
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.timeout(600)  # the first test of a file may be the one that starts the cluster


def run_calls(path: Path, *options: str, **places: str) -> str:
    """The output of the tests of a file that pytest does not collect, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--noconftest", *options, str(path)],
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tritonclient_over_grpc(cluster: ServeCluster, port: int) -> None:
    output = run_calls(TRITON_CALLS, TEST_GRPC_ADDRESS=f"127.0.0.1:{port}", TEST_HTTP_URL=cluster.url)
    assert "8 passed" in output


def test_langchain_litellm_cohere_and_ollama(cluster: ServeCluster) -> None:
    source = next(one["args"]["source"] for one in cluster.applications if one["name"] == "minilm")
    output = run_calls(OTHER_CALLS, "-W", "ignore", TEST_HTTP_URL=cluster.url, TEST_EMBEDDER_SOURCE=source)
    assert "8 passed" in output


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


def test_calls_of_our_own_over_grpc(cluster: ServeCluster, port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rayshard_services.RayshardStub(channel)  # type: ignore[no-untyped-call]  # generated
        sampling = rayshard_pb.SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
        request = rayshard_pb.GenerateRequest(model="demo", text="abc abc abc", sampling=sampling)
        pieces = list(stub.Generate(request, timeout=60))
        expected = cluster.complete("demo", "abc abc abc", max_tokens=24, ignore_eos=True).json()
        assert "".join(piece.text for piece in pieces) == expected["choices"][0]["text"]
        assert pieces[-1].usage.completion_tokens == 24
        assert len(pieces) > 8
        message = rayshard_pb.Message(role="user", content="sort: c a b")
        chat = list(stub.Chat(rayshard_pb.ChatRequest(model="demo", messages=[message], sampling=sampling)))
        assert chat[-1].usage.completion_tokens == 24
        made = stub.Embed(rayshard_pb.EmbedRequest(model="minilm", texts=["a", "b"]))
        assert [len(one.values) for one in made.embeddings] == [384, 384]
        (ticket,) = stub.Classify(rayshard_pb.ClassifyRequest(model="tickets", texts=["refund me"])).classifications
        assert ticket.label == post(cluster, "/predict", model="tickets", text="refund me")["label"]
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        assert health.Check(health_pb2.HealthCheckRequest(service="demo")).status == 1
        watching = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()
        unknown = health.Check.future(health_pb2.HealthCheckRequest(service="no-such"))
        assert unknown.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_tells_the_service(cluster: ServeCluster, port: int) -> None:
    assert cluster.is_healthy()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        name = "inference.GRPCInferenceService"
        asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)]
        (answer,) = stub.ServerReflectionInfo(iter(asked))
    file = descriptor_pb2.FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
    assert [method.name for method in file.service[0].method][-1] == "ModelStreamInfer"


def test_the_openai_client(cluster: ServeCluster) -> None:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        made = client.embeddings.create(model="minilm", input=["one text", "ü"])
        assert np.abs(np.array([one.embedding for one in made.data]) - vectors(cluster, ["one text", "ü"])).max() < 1e-6
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "sort: c a b"}]
        events = client.chat.completions.create(model="demo", messages=messages, temperature=0, stream=True)
        text = "".join(event.choices[0].delta.content or "" for event in events)
        whole = client.chat.completions.create(model="demo", messages=messages, temperature=0)
        assert text == whole.choices[0].message.content
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("no-such")


@pytest.mark.parametrize("carrier", ["http", "grpc"])
def test_our_own_client(cluster: ServeCluster, port: int, carrier: str) -> None:
    address = cluster.url if carrier == "http" else f"grpc://127.0.0.1:{port}"
    with Client(address, timeout_s=60) as client:
        pieces = list(client.generate("abc abc abc", model="demo", max_tokens=24, temperature=0, ignore_eos=True))
        expected = cluster.complete("demo", "abc abc abc", max_tokens=24, ignore_eos=True).json()
        assert "".join(piece.text for piece in pieces) == expected["choices"][0]["text"]
        assert np.abs(client.embed(["a", "ü"], model="minilm") - vectors(cluster, ["a", "ü"])).max() < 1e-6
        (ticket,) = client.classify(["refund me"], model="tickets")
        assert ticket.label == post(cluster, "/predict", model="tickets", text="refund me")["label"]
        rows = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
        assert client.predict({"input": rows}, model="linear")["output"].shape == (3, 2)
        with pytest.raises(ModelNotFoundError):
            client.embed(["a"], model="no-such")


def test_the_curl_lines_of_the_documents(cluster: ServeCluster) -> None:
    commands = [block for path in DOCUMENTS for block in SHELL.findall(path.read_text()) if block.startswith("curl ")]
    assert len(commands) >= 3
    for command in commands:
        here = command.replace("http://127.0.0.1:8000", cluster.url).replace('"embedder"', '"minilm"')
        script = f'set -e\ncurl() {{ command curl --silent --show-error --fail-with-body --max-time 60 "$@"; }}\n{here}'
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert done.stdout.strip()
        if '"stream": true' in command:
            deltas = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("data: {")]
            text = "".join(one["choices"][0]["delta"].get("content", "") for one in deltas)
            assert text == "2038-01-08"  # as the README says
