"""Training on a small CSV: what is learnt, what is written, and that a seed decides."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from serve_app.cli.main import main
from serve_app.config.training import TrainingSettings
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.training.csv_rows import LabelledText
from serve_app.training.fitting import Best, EncodedRows, LoneGroup, Snapshot
from serve_app.training.text_training import PreparedTraining, evaluate, train

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


class Interrupted(LoneGroup):
    """A process that is stopped behind an epoch, and goes on from what it had saved."""

    def __init__(self, stops_behind: int) -> None:
        super().__init__(max_epochs=8)
        self._stops_behind = stops_behind
        self._saved: tuple[str, dict[str, torch.Tensor]] | None = None

    def load(self) -> Snapshot | None:  # type: ignore[override]
        """The snapshot of the last epoch."""
        return None if self._saved is None else Snapshot.of(*self._saved)

    def save(self, snapshot: Snapshot, epoch: int, _validation_loss: float) -> None:
        """Keep it, or stop."""
        tensors = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
        self._saved = (snapshot.head(), tensors)
        if epoch == self._stops_behind:
            self._stops_behind = -1
            raise KeyboardInterrupt


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    settings = replace(SETTINGS, dropout=0.0, max_epochs=6, patience=6)

    def stop_and_go_on(prepared: PreparedTraining) -> Best:
        group = Interrupted(stops_behind=3)
        with pytest.raises(KeyboardInterrupt):
            prepared.run(group)
        return prepared.run(group)

    train(ROWS, tmp_path / "whole", settings)
    report = train(ROWS, tmp_path / "stopped", settings, stop_and_go_on)
    assert report.num_epochs == 6
    whole, stopped = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_row_of_a_batch_is_one_processs_share(world_size: int) -> None:
    rows = EncodedRows([torch.arange(size) + 10 * size for size in (3, 1, 2, 5)], torch.tensor([0, 1, 0, 1]))
    batch = rows.batch(torch.tensor([2, 0, 3]))
    shares = [batch.share(rank, world_size) for rank in range(world_size)]
    assert sum(len(share.labels) for share in shares) == 3
    for rank, share in enumerate(shares):
        own = rows.batch(torch.tensor([2, 0, 3])[rank::world_size]) if rank < 3 else None
        if own is None:
            assert len(share.input_ids) == len(share.lengths) == 0
        else:
            assert torch.equal(share.input_ids, own.input_ids)
            assert torch.equal(share.lengths, own.lengths)
            assert torch.equal(share.labels, own.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-workers", "0"], "not a number of workers"),
        (["--storage", "/x"], "--storage has no effect on one worker"),
    ],
)
def test_options_of_workers_are_checked_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["train", str(tmp_path / "no.csv"), str(tmp_path / "model"), *options]) == 1
    assert message in capsys.readouterr().err
