"""Classifiers and cross-encoders of one and two texts, against sentence-transformers and transformers themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, BertTokenizerFast

from serve_app.checkpoints.encoder_spec import EncoderChoices, read_encoder_spec
from serve_app.engine.encoder_loader import load_encoder_stage
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.planning.planner import plan_shards
from serve_app.preprocessing.model_entries import activated
from serve_app.types.models import ModelDescription
from tests.sentence_checkpoints import make_transformer, packed, save_words, write_json
from tests.stage_group import CPU, WHOLE, settings_of

TOLERANCE = 1e-5
PAIRS = [
    ("the cat sat", "a dog ran far"),
    ("Dog", "the mat and the cat slept on a mat !"),
    ("a mat " * 40, "dog " * 41),
]
ENCODER_FAMILIES = ("bert", "roberta", "distilbert", "modernbert", "deberta-v2")
DECODER_FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text")


def outputs_of(directory: Path, task: str, prompt: str | None = None) -> torch.Tensor:
    """Our scores or probabilities of PAIRS [B, C]."""
    spec = read_encoder_spec(EncoderChoices(task), directory)
    assert spec.classifier is not None
    stage = load_encoder_stage(settings_of(str(directory), task=task), LoneCommunicator(), CPU)
    assert plan_shards(spec.spec, 1, 1).shards == [WHOLE]
    (logits,) = stage.forward(packed(spec, PAIRS, prompt), None).values()
    description = ModelDescription("m", task, "", 64, 64, 99, [], 0, score_activation=spec.classifier.activation)
    return torch.from_numpy(activated(description, logits.numpy())).float()


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    write_json(path, json.loads(path.read_text()) | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh", "version": "5.0.0"}},
    ],
    ids=["sigmoid", "identity", "tanh"],
)
def test_a_cross_encoder_scores_as_sentence_transformers_does(changes: dict[str, Any], tmp_path: Path) -> None:
    directory = make_transformer("bert", tmp_path, kind="classifier", num_labels=1)
    change_config(directory, **changes)
    expected = CrossEncoder(str(directory), device="cpu").predict(PAIRS)
    actual = outputs_of(directory, "score")[:, 0]
    assert (actual - torch.tensor(expected)).abs().max() <= TOLERANCE
    assert len(set(actual.tolist())) == len(PAIRS)


def test_a_cross_encoder_that_sentence_transformers_saved_keeps_its_prompt_and_activation(tmp_path: Path) -> None:
    plain = make_transformer("bert", tmp_path / "plain", kind="classifier", num_labels=1)
    prompts = {"find": "query : "}
    model = CrossEncoder(
        str(plain), device="cpu", activation_fn=torch.nn.Tanh(), prompts=prompts, default_prompt_name="find"
    )
    model.save_pretrained(str(tmp_path / "saved"))
    spec = read_encoder_spec(EncoderChoices("score"), tmp_path / "saved")
    assert (spec.prompts.texts["find"], spec.prompts.default_name) == ("query : ", "find")
    actual = outputs_of(tmp_path / "saved", "score", "query : ")[:, 0]
    assert (actual - torch.tensor(model.predict(PAIRS))).abs().max() <= TOLERANCE


@pytest.mark.parametrize("names", [["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]])
def test_token_types_are_given_as_the_tokenizer_says(names: list[str], tmp_path: Path) -> None:
    directory = make_transformer("bert", tmp_path, kind="classifier", num_labels=1)
    save_words(directory, model_input_names=names)
    expected = CrossEncoder(str(directory), device="cpu").predict(PAIRS)
    assert (outputs_of(directory, "score")[:, 0] - torch.tensor(expected)).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in ENCODER_FAMILIES),
        *((name, changes) for name in DECODER_FAMILIES for changes in ({}, {"is_causal": False}, {"pad_token_id": 3})),
    ],
    ids=str,
)
def test_pairs_are_classified_as_transformers_does(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    directory = make_transformer(name, tmp_path, kind="classifier", **changes)
    tokenizer = BertTokenizerFast.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, attn_implementation="eager").eval()
    expected = []
    with torch.inference_mode():
        for pair in PAIRS:
            given = tokenizer(*pair, truncation=True, max_length=62 if name == "roberta" else 64, return_tensors="pt")
            if name not in ("bert", "roberta"):
                del given["token_type_ids"]
            expected.append(model(**given).logits.softmax(-1)[0])
    actual = outputs_of(directory, "classify")
    assert (actual - torch.stack(expected)).abs().max() <= TOLERANCE
    assert len(set(actual[:, 0].tolist())) == len(PAIRS)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_a_regression_gives_its_numbers(num_labels: int, tmp_path: Path) -> None:
    changes = {"num_labels": num_labels, "problem_type": "regression"}
    directory = make_transformer("bert", tmp_path, kind="classifier", **changes)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    given = BertTokenizerFast.from_pretrained(directory)(*PAIRS[0], return_tensors="pt")
    with torch.inference_mode():
        expected = model(**given).logits[0]
    assert (outputs_of(directory, "classify")[0] - expected).abs().max() <= TOLERANCE
