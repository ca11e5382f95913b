"""Each kind of model, and graphs that join them."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertForSequenceClassification

from serve_app.models.text_classifier import TextClassifier
from serve_app.planning.serve_file import load_serve_file
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.training.csv_rows import read_csv
from tests.integration.everything.calls import EXAMPLE, post, vectors
from tests.integration.serve_cluster import ROOT, ServeCluster

TEXT = "<p>My card was charged twice. Please write to  jo@example.org!</p>"
CLEAN = "My card was charged twice. Please write to <EMAIL_1>!"
SENTENCES = ["My card was charged twice.", "Please write to <EMAIL_1>!"]
TICKETS = ROOT / "examples" / "text_classifier"

pytestmark = pytest.mark.timeout(600)  # the first test of a file may be the one that starts the cluster


def test_the_example_has_no_mistake() -> None:
    example = load_serve_file(EXAMPLE)
    assert [model.config.name for model in example.models] == ["demo", "minilm", "mood", "tickets"]
    assert [graph.config.name for graph in example.graphs] == ["triage"]


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


def test_a_graph_gives_what_its_models_give_one_after_the_other(cluster: ServeCluster) -> None:
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


def test_what_a_graph_refuses_names_the_step_and_the_next_request_works(cluster: ServeCluster) -> None:
    answer = httpx.post(f"{cluster.url}/predict", json={"model": "triage", "text": "word " * 2000}, timeout=60)
    assert answer.status_code == 400, answer.text
    assert "step vectors" in answer.json()["error"]["message"]
    refused = httpx.post(f"{cluster.url}/v1/embeddings", json={"model": "triage", "input": "a"}, timeout=60)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    assert "results" in post(cluster, "/predict", model="triage", text="a")
