"""examples/everything.yaml on a real cluster: each kind of model, pipelines that join them, and every client."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch
import tritonclient.http as triton
import yaml
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertForSequenceClassification

from examples.prepare_everything import prepare
from serve_app.models.text_classifier import TextClassifier
from serve_app.planning.csv_rows import read_csv
from serve_app.planning.serve_file import load_serve_file
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.protos import open_inference_pb2 as pb
from serve_app.protos import open_inference_pb2_grpc as services
from serve_app.protos import rayshard_pb2 as rayshard_pb
from serve_app.protos import rayshard_pb2_grpc as rayshard_services
from tests.integration.serve_cluster import DEMO_MODEL, ROOT, ServeCluster, free_port, model_application
from tests.unit.test_torch_model import save
from tests.user_modules import Sized

EXAMPLE = ROOT / "examples" / "everything.yaml"
TEXT = "<p>My card was charged twice. Please write to  jo@example.org!</p>"
CLEAN = "My card was charged twice. Please write to <EMAIL_1>!"
SENTENCES = ["My card was charged twice.", "Please write to <EMAIL_1>!"]
TICKETS = ROOT / "examples" / "text_classifier"
_CHOICE = {  # a detector's label chooses the generator
    "name": "assistant",
    "route_prefix": None,
    "import_path": "serve_app.app:build_pipeline",
    "args": {
        "name": "assistant",
        "steps": [
            {"name": "topic", "model": "tickets"},
            {
                "name": "answer",
                "choose": "topic",
                "cases": {"billing": "demo"},
                "default": "demo-short",
                "max_tokens": 12,
            },
        ],
        "output": ["topic", "answer"],
    },
}


_LINEAR: dict[str, Any] = {  # a module of the tests
    "name": "linear",
    "route_prefix": None,
    "import_path": "serve_app.app:build_model",
    "args": {
        "name": "linear",
        "task": "predict",
        "inputs": {"input": {"dtype": "float32", "shape": ["batch", 4]}},
        "outputs": {"output": {"dtype": "float32", "shape": ["batch", 2]}},
        "arguments": {"in_features": 4, "out_features": 2},
        "architecture": "tests.user_modules:Sized",
        "device": {"cpu_threads": 1},
    },
}
SERVICES = [
    "serve_app.protos.open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server",
    "serve_app.protos.rayshard_pb2_grpc.add_RayshardServicer_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
]
CALLS = Path(__file__).with_name("triton_grpc_calls.py")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("everything")
    prepare(directory)
    return directory


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def cluster(models: Path, port: int) -> Iterator[ServeCluster]:
    applications = yaml.safe_load(EXAMPLE.read_text())["applications"]
    for application in applications:
        source = application["args"].get("source")
        if source is not None:
            made = models / Path(source).name
            application["args"]["source"] = str(made if made.exists() else (EXAMPLE.parent / source).resolve())
    gateway = next(one for one in applications if one["name"] == "gateway")
    gateway["args"] = {"queue_timeout_s": 120.0, "max_request_bytes": 64 * 2**20}
    second = model_application("demo-short", source=DEMO_MODEL, preprocessing=["normalize_unicode", "redact_pii"])
    torch.manual_seed(0)
    save(Sized(4, 2), models / "linear")
    grpc_options = {"port": port, "grpc_servicer_functions": SERVICES, "enable_reflection": True}
    linear = {**_LINEAR, "args": {**_LINEAR["args"], "source": str(models / "linear")}}
    cluster = ServeCluster([*applications, second, linear, _CHOICE], grpc_options)
    cluster.wait_until(cluster.is_healthy, 60, "health")
    yield cluster
    cluster.stop()


def post(cluster: ServeCluster, path: str, **body: Any) -> Any:
    response = httpx.post(f"{cluster.url}{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def vectors(cluster: ServeCluster, texts: list[str]) -> np.ndarray:
    data = post(cluster, "/v1/embeddings", model="minilm", input=texts)["data"]
    return np.array([entry["embedding"] for entry in data])


def test_the_example_has_no_mistake() -> None:
    example = load_serve_file(EXAMPLE)
    assert [model.config.name for model in example.models] == ["demo", "minilm", "mood", "tickets"]
    assert [pipeline.config.name for pipeline in example.pipelines] == ["triage"]


@pytest.mark.timeout(600)
def test_every_kind_of_model_answers(cluster: ServeCluster, models: Path) -> None:
    assert cluster.complete("demo", "abc abc abc", ignore_eos=True).json()["choices"][0]["text"]
    assert np.linalg.norm(vectors(cluster, ["a text"])) == pytest.approx(1, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(models / "bert")
    bert = BertForSequenceClassification.from_pretrained(models / "bert").eval()
    with torch.no_grad():
        expected = bert(**tokenizer(TEXT, return_tensors="pt")).logits.softmax(-1)[0].tolist()
    (mood,) = post(cluster, "/v1/classify", model="mood", input=TEXT)["data"]
    best = sorted(zip(expected, bert.config.id2label.values(), strict=True), reverse=True)[:2]  # its steps leave two
    assert [one["label"] for one in mood["labels"]] == [label for _probability, label in best]
    assert mood["probs"] == pytest.approx([probability for probability, _label in best], abs=1e-5)
    ticket = post(cluster, "/predict", model="tickets", text="jo@example.org was charged")
    hidden = post(cluster, "/predict", model="tickets", text="someone.else@example.net was charged")
    assert ticket["probabilities"] == pytest.approx(
        hidden["probabilities"], abs=1e-6
    )  # the chain has taken the address out
    (made,) = post(cluster, "/v1/preprocess", model="tickets", input="Jo@Example.org")["data"]
    assert made["value"]["text"] == "<email_1>"
    assert [step["step"] for step in made["steps"]] == ["normalize_unicode", "redact_pii", "lowercase"]


def test_the_split_classifier_says_what_the_unsplit_one_says(cluster: ServeCluster) -> None:
    config = json.loads((TICKETS / "model" / "config.json").read_text())
    whole = TextClassifier(**config["arguments"]).eval()
    whole.load_state_dict(load_file(str(TICKETS / "model" / "model.safetensors")))
    tokenizer = Tokenizer.load(TICKETS / "model")
    rows = read_csv(TICKETS / "heldout.csv", "text", "label").rows
    answers = post(cluster, "/predict", model="tickets", text=[row.text for row in rows])
    num_right = 0
    for row, answer in zip(rows, answers, strict=True):
        token_ids = torch.tensor(tokenizer.encode(row.text.lower(), add_special_tokens=True))
        with torch.no_grad():
            expected = whole(token_ids, torch.tensor([len(token_ids)])).softmax(-1)[0].tolist()
        labels = [config["id2label"][str(index)] for index in range(len(expected))]
        assert [answer["probabilities"][label] for label in labels] == pytest.approx(expected, abs=1e-6)
        num_right += answer["label"] == row.label
    assert num_right / len(rows) >= 0.9


def test_a_pipeline_gives_what_its_models_give_one_after_the_other(cluster: ServeCluster) -> None:
    results = post(cluster, "/predict", model="triage", text=TEXT)["results"]
    alone = post(cluster, "/predict", model="tickets", text=CLEAN)
    assert results["topic"]["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6)
    assert [entry["text"] for entry in results["sentences"]] == SENTENCES
    made = np.array([entry["embedding"] for entry in results["vectors"]])
    assert np.abs(made - vectors(cluster, SENTENCES)).max() < 1e-6
    many = post(cluster, "/predict", model="triage", text=[TEXT, "Where is my parcel?"])
    topic = many[0]["results"]["topic"]
    assert topic["probabilities"] == pytest.approx(results["topic"]["probabilities"], abs=1e-6)
    assert len(many[1]["results"]["vectors"]) == 1


def test_a_label_chooses_the_generator(cluster: ServeCluster) -> None:
    texts = ["I was charged twice on my invoice", "the app crashes when I open it", "12+34="]
    for text, one in zip(texts, post(cluster, "/predict", model="assistant", text=texts), strict=True):
        model = "demo" if one["results"]["topic"]["label"] == "billing" else "demo-short"
        alone = cluster.complete(model, text, max_tokens=12).json()["choices"][0]["text"]
        assert one["results"]["answer"]["text"] == alone


def test_a_generator_behind_steps_answers_with_placeholders_or_with_what_they_stand_for(cluster: ServeCluster) -> None:
    prompt = "reverse: jo@example.org"
    redacted = cluster.complete("demo-short", prompt, echo=True, max_tokens=4).json()["choices"][0]["text"]
    alone = cluster.complete("demo", "reverse: <EMAIL_1>", echo=True, max_tokens=4).json()["choices"][0]["text"]
    assert redacted == alone
    body = {"echo": True, "max_tokens": 4, "restore_redactions": True}
    restored = cluster.complete("demo-short", prompt, **body).json()["choices"][0]["text"]
    assert restored == redacted.replace("<EMAIL_1>", "jo@example.org")
    asked = {"model": "triage", "text": TEXT, "restore_redactions": True}
    sentences = post(cluster, "/predict", **asked)["results"]["sentences"]
    assert [entry["text"] for entry in sentences] == [SENTENCES[0], "Please write to jo@example.org!"]


def test_what_a_pipeline_refuses_names_the_step_and_the_next_request_works(cluster: ServeCluster) -> None:
    answer = httpx.post(f"{cluster.url}/predict", json={"model": "triage", "text": "word " * 2000}, timeout=60)
    assert answer.status_code == 400, answer.text
    assert "step vectors" in answer.json()["error"]["message"]
    refused = httpx.post(f"{cluster.url}/v1/embeddings", json={"model": "triage", "input": "a"}, timeout=60)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    assert "results" in post(cluster, "/predict", model="triage", text="a")


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


def test_no_text_is_found_in_any_log_whatever_dies_under_it(cluster: ServeCluster, port: int) -> None:
    canary = "canary7319"
    chat = [{"role": "user", "content": f"{canary} was here"}]
    assert grpc_codes(port, canary) == ["OK", "OK", "INVALID_ARGUMENT", "INVALID_ARGUMENT"]
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
    ]
    for path, body in calls:
        httpx.post(f"{cluster.url}{path}", json=body, timeout=60)
    long = {"prompt": f"{canary} again", "max_tokens": 900, "ignore_eos": True, "temperature": 1}
    for victim, path, body in (
        ("ray::Shard", "/v1/completions", {"model": "demo", **long}),
        ("ray::ServeReplica:demo:Router", "/v1/completions", {"model": "demo", **long}),
        ("ray::ServeReplica:triage:Pipeline", "/predict", {"model": "triage", "text": [f"{canary}. " * 40] * 100}),
    ):
        status = kill_under(cluster, victim, path, body)
        assert status in (200, 500, 503), (victim, status)
        cluster.wait_until(cluster.is_healthy, 120, f"health after the death of {victim}")
    assert "results" in post(cluster, "/predict", model="triage", text="a")
    files = [path for path in cluster.directory.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if canary.encode() in path.read_bytes()]


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


def kill_under(cluster: ServeCluster, victim: str, path: str, body: dict[str, Any]) -> int:
    """The status of a request whose process was killed, with SIGKILL, while it was in flight."""
    statuses: list[int] = []
    caller = threading.Thread(
        target=lambda: statuses.append(httpx.post(f"{cluster.url}{path}", json=body, timeout=120).status_code)
    )
    pids = cluster.pids(victim)
    assert pids, victim
    caller.start()
    time.sleep(0.3)
    assert caller.is_alive(), "it was done before anything could die"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    caller.join(120)
    return statuses[0]
