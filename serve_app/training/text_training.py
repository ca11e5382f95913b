"""Training the text classifier: a vocabulary from the rows, the model, and the directory that it is written to."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from serve_app.checkpoints.own_modules import TEXT_CLASSIFIER
from serve_app.config.training import TrainingSettings
from serve_app.models.text_classifier import TextClassifier
from serve_app.training.csv_rows import LabelledText
from serve_app.training.fitting import Best, EncodedRows, Group, LoneGroup, fit
from serve_app.training.split_texts import SplitTexts, split_texts
from serve_app.training.vocabulary import UNKNOWN, save_tokenizer


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """The result of a training."""

    num_training: int
    num_validation: int
    num_epochs: int
    best_epoch: int
    validation_accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True)
class PreparedTraining:
    """Rows as tokens, and the sizes of the model that learns them."""

    training: EncodedRows
    validation: EncodedRows
    arguments: dict[str, int]  # of the model
    unknown_id: int
    settings: TrainingSettings

    def run(self, group: Group) -> Best:
        """Train in this process, which is one of the group."""
        torch.manual_seed(self.settings.seed)
        model = make_classifier(self.arguments, self.settings.dropout)
        return fit(model, self.training, self.validation, self.settings, self.unknown_id, group)


def train(
    rows: list[LabelledText],
    directory: Path,
    settings: TrainingSettings,
    run: Callable[[PreparedTraining], Best] | None = None,
) -> TrainingReport:
    """Train on rows and write a model directory that can be served; see train_on."""
    return train_on(split_texts(rows, settings), directory, settings, run)


def train_on(
    texts: SplitTexts,
    directory: Path,
    settings: TrainingSettings,
    run: Callable[[PreparedTraining], Best] | None = None,
) -> TrainingReport:
    """Train on texts and write a model directory that can be served. The same seed gives the same bytes.

    That holds on one thread of one kind of machine. `run` trains elsewhere than in this process. Raises ConfigError
    when nothing was learnt.
    """
    started = time.monotonic()
    tokenizer, labels = texts.tokenizer, texts.labels
    arguments = {
        "vocab_size": tokenizer.get_vocab_size(),
        "num_labels": len(labels),
        "embedding_dim": settings.embedding_dim,
        "hidden_size": settings.hidden_size,
    }
    unknown_id = tokenizer.token_to_id(UNKNOWN)
    assert unknown_id is not None
    training, validation = (_encode(tokenizer, part, labels) for part in (texts.training, texts.validation))
    prepared = PreparedTraining(training, validation, arguments, unknown_id, settings)
    best = (run or _run_alone)(prepared)
    model = make_classifier(arguments)
    model.load_state_dict(best.state)
    _save(model, tokenizer, arguments, labels, directory)
    return TrainingReport(
        num_training=len(texts.training),
        num_validation=len(texts.validation),
        num_epochs=best.num_epochs,
        best_epoch=best.epoch,
        validation_accuracy=accuracy(model, validation),
        seconds=time.monotonic() - started,
    )


def make_classifier(arguments: dict[str, int], dropout: float = 0.0) -> TextClassifier:
    """A classifier of these sizes."""
    return TextClassifier(
        vocab_size=arguments["vocab_size"],
        num_labels=arguments["num_labels"],
        embedding_dim=arguments["embedding_dim"],
        hidden_size=arguments["hidden_size"],
        dropout=dropout,
    )


def evaluate(directory: Path, rows: list[LabelledText]) -> float:
    """The share of rows whose label a trained model directory gives."""
    config = json.loads((directory / "config.json").read_text())
    labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = make_classifier(config["arguments"])
    model.load_state_dict(load_file(str(directory / "model.safetensors")))
    known = [row for row in rows if row.label in labels]
    if not known:
        return 0.0
    return accuracy(model, _encode(tokenizer, known, labels)) * len(known) / len(rows)


@torch.no_grad()
def accuracy(model: TextClassifier, rows: EncodedRows) -> float:
    """The share of rows that a model labels correctly."""
    model.eval()
    num_right = 0
    for indexes in torch.split(torch.arange(len(rows.labels)), 256):
        batch = rows.batch(indexes)
        num_right += int((model(batch.input_ids, batch.lengths).argmax(-1) == batch.labels).sum())
    return num_right / len(rows.labels)


def _run_alone(prepared: PreparedTraining) -> Best:
    group = LoneGroup(prepared.settings.max_epochs)
    try:
        return prepared.run(group)
    finally:
        group.close()


def _encode(tokenizer: Tokenizer, rows: list[LabelledText], labels: list[str]) -> EncodedRows:
    indexes = {label: index for index, label in enumerate(labels)}
    token_ids = [torch.tensor(one.ids, dtype=torch.int64) for one in tokenizer.encode_batch([row.text for row in rows])]
    return EncodedRows(token_ids, torch.tensor([indexes[row.label] for row in rows]))


def _save(
    model: TextClassifier, tokenizer: Tokenizer, arguments: dict[str, int], labels: list[str], directory: Path
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, directory)
    save_file(dict(model.state_dict()), str(directory / "model.safetensors"))
    config = {"architecture": TEXT_CLASSIFIER, "arguments": arguments, "id2label": dict(enumerate(labels))}
    (directory / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def describe(report: TrainingReport) -> str:
    """The report as a line for people."""
    values = asdict(report)
    return (
        "trained on {num_training} rows in {seconds:.1f} s, {num_epochs} epochs (best: {best_epoch}); "
        "accuracy on {num_validation} validation rows {validation_accuracy:.3f}".format(**values)
    )
