"""Training on a small CSV: what is learnt, what is written, and that a seed decides."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from serve_app.cli import main
from serve_app.planning.csv_rows import LabelledText
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.training.text_training import TrainingSettings, evaluate, train

COLOURS = {"warm": ["red", "orange", "crimson"], "cold": ["blue", "cyan", "navy"]}
ROWS = [
    LabelledText(f"{opening} {colour} {thing}", label)
    for label, colours in COLOURS.items()
    for colour in colours
    for opening in ("the", "a", "one", "some")
    for thing in ("door", "house", "car", "hat")
]
SETTINGS = TrainingSettings(embedding_dim=8, hidden_size=8, max_epochs=8, word_dropout=0.05, learning_rate=0.02)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_what_tells_the_labels_apart_is_learnt_and_can_be_served(tmp_path: Path) -> None:
    report = train(ROWS, tmp_path, SETTINGS)
    assert report.validation_accuracy == 1.0
    assert report.num_training + report.num_validation == len(ROWS)
    unseen = [LabelledText(f"your crimson, {word}!", "warm") for word in ("boat", "shoe")]
    assert evaluate(tmp_path, unseen) == 1.0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "cold", "1": "warm"}
    assert config["arguments"]["vocab_size"] == Tokenizer.load(tmp_path).num_tokens


def test_a_seed_gives_the_same_bytes_and_another_one_others(tmp_path: Path) -> None:
    settings = replace(SETTINGS, max_epochs=2)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(ROWS, tmp_path / name, replace(settings, seed=seed))
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == again != other


def test_training_stops_when_it_gets_no_better(tmp_path: Path) -> None:
    report = train(ROWS, tmp_path, replace(SETTINGS, learning_rate=0.0, patience=2))
    assert (report.best_epoch, report.num_epochs) == (1, 3)


def test_a_label_that_the_model_does_not_know_counts_as_wrong(tmp_path: Path) -> None:
    train(ROWS, tmp_path, SETTINGS)
    rows = [LabelledText("the red door", "warm"), LabelledText("the red door", "purple")]
    assert evaluate(tmp_path, rows) == 0.5


def test_the_command_trains_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = tmp_path / "rows.csv"
    csv.write_text("words,kind\n" + "".join(f"{row.text},{row.label}\n" for row in ROWS))
    command = ["train", str(csv), str(tmp_path / "model"), "--text-column", "words", "--label-column", "kind"]
    command += ["--held-out", str(csv), "--max-epochs", "8", "--hidden-size", "8", "--learning-rate", "0.02"]
    assert main(command) == 0
    assert "accuracy on 96 held-out rows 1.000" in capsys.readouterr().out
    assert main(command) == 1
    assert "is not empty; choose another directory, or give --overwrite" in capsys.readouterr().err
    assert main([*command[:3], "--overwrite"]) == 1
    assert "has no column 'text'" in capsys.readouterr().err
