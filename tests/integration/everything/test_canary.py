"""No text of a request reaches a log, whatever dies under it."""

from functools import partial
from typing import Any

import grpc
import httpx
import pytest

from serve_app.protos import open_inference_pb2 as pb
from serve_app.protos import open_inference_pb2_grpc as services
from serve_app.protos import rayshard_pb2 as rayshard_pb
from serve_app.protos import rayshard_pb2_grpc as rayshard_services
from tests.integration.everything.calls import kill_under, post
from tests.integration.serve_cluster import ServeCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # every process of eight applications dies and comes back


def test_no_text_is_found_in_any_log_whatever_dies_under_it(cluster: ServeCluster, port: int) -> None:
    canary = "canary7319"
    chat = [{"role": "user", "content": f"{canary} was here"}]
    assert grpc_codes(port, canary) == ["OK", "OK", "INVALID_ARGUMENT", "INVALID_ARGUMENT"]
    assert stream_code(port, canary) == "INVALID_ARGUMENT"
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/predict", {"model": "triage", "text": f"{canary} was here"}),
        ("/predict", {"model": "assistant", "text": f"{canary} was here"}),
        ("/predict", {"model": "triage", "text": f"{canary} " * 2000}),
        ("/v1/completions", {"model": "demo", "prompt": canary, "max_tokens": 8, "stop": canary, "user": canary}),
        ("/v1/completions", {"model": "demo-short", "prompt": canary, "max_tokens": 8, "restore_redactions": True}),
        ("/v1/completions", {"model": "demo", "prompt": canary, "temperature": canary}),
        ("/v1/chat/completions", {"model": "demo", "messages": chat, "max_tokens": 8, "logprobs": True}),
        ("/v1/chat/completions", {"model": "demo", "messages": chat, "tools": canary}),
        ("/v1/tokenize", {"model": "demo", "prompt": canary}),
        ("/v1/preprocess", {"model": "tickets", "input": canary, "reveal": True}),
        ("/v1/explain", {"model": "tickets", "input": f"{canary} was here", "target": canary}),
        ("/v1/explain", {"model": "tickets", "input": f"{canary} was here"}),
        ("/v1/explain", {"model": "demo", "input": f"{canary} was here", "target": canary}),
    ]
    for path, body in calls:
        httpx.post(f"{cluster.url}{path}", json=body, timeout=60)
    long = {"prompt": f"{canary} again", "max_tokens": 900, "ignore_eos": True, "temperature": 1}
    for victim, path, body in (
        ("ray::Shard", "/v1/completions", {"model": "demo", **long}),
        ("ray::ServeReplica:demo:Router", "/v1/completions", {"model": "demo", **long}),
        ("ray::ServeReplica:triage:Graph", "/predict", {"model": "triage", "text": [f"{canary}. " * 40] * 100}),
    ):
        before = set(cluster.pids(victim))
        status = kill_under(cluster, victim, path, body)
        assert status in (200, 500, 503), (victim, status)
        has_new = partial(has_as_many_new, cluster, victim, before)
        cluster.wait_until(has_new, 300, f"new processes in place of {victim}")
        cluster.wait_until(cluster.is_healthy, 300, f"health after the death of {victim}")
    assert "results" in post(cluster, "/predict", model="triage", text="a")
    assert len([path for path in cluster.directory.rglob("*") if path.is_file()]) > 10
    assert cluster.files_with(canary) == []


def has_as_many_new(cluster: ServeCluster, title: str, before: set[int]) -> bool:
    return len(set(cluster.pids(title)) - before) >= len(before)


def stream_code(port: int, canary: str) -> str:
    """The status of a stream that is refused, with the text in what is quoted."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rayshard_services.RayshardStub(channel)  # type: ignore[no-untyped-call]  # generated
        messages = [rayshard_pb.Message(role=canary, content=canary)]
        stream = stub.Chat(rayshard_pb.ChatRequest(model="demo", messages=messages), timeout=30)
        return str(stream.code().name)


def grpc_codes(port: int, canary: str) -> list[str]:
    """The statuses of calls with the text as an element, an input's name and an id."""
    codes = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = services.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        for model, name in (("demo", "text_input"), ("minilm", "text_input"), ("demo", canary), ("linear", "x")):
            request = pb.ModelInferRequest(model_name=model, id=canary)
            tensor = request.inputs.add(name=name, datatype="BYTES", shape=[1])
            tensor.contents.bytes_contents.append(canary.encode())
            codes.append(stub.ModelInfer.future(request, timeout=30).code().name)
    return codes
