"""Training the text classifier: Adam, early stopping on the validation loss, words made unknown at random."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from serve_app.models.text_classifier import TextClassifier
from serve_app.planning.csv_rows import LabelledText, labels_of, split_rows
from serve_app.training.vocabulary import UNKNOWN, make_tokenizer, save_tokenizer

ARCHITECTURE = "serve_app.models.text_classifier:TextClassifier"


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a classifier is trained."""

    embedding_dim: int = 64
    hidden_size: int = 64
    dropout: float = 0.3
    word_dropout: float = 0.2  # share of words made unknown in each batch
    learning_rate: float = 3e-3
    batch_size: int = 32
    max_epochs: int = 30
    patience: int = 4  # epochs without a better validation loss
    validation_share: float = 0.15
    min_frequency: int = 2
    max_vocabulary: int = 30_000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What came of it."""

    num_training: int
    num_validation: int
    num_epochs: int
    best_epoch: int
    validation_accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True)
class _Encoded:
    token_ids: list[Tensor]  # [T] int64 each
    labels: Tensor  # [N] int64

    def batch(self, indexes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Packed input_ids [T], lengths [B], labels [B]."""
        chosen = [self.token_ids[index] for index in indexes.tolist()]
        return torch.cat(chosen), torch.tensor([len(one) for one in chosen]), self.labels[indexes]


def train(rows: list[LabelledText], directory: Path, settings: TrainingSettings) -> TrainingReport:
    """Train on rows and write a model directory that can be served. The same seed gives the same bytes.

    That holds on one thread of one kind of machine. Raises ConfigError for rows that cannot be split.
    """
    started = time.monotonic()
    labels = labels_of(rows)
    training_rows, validation_rows = split_rows(rows, settings.validation_share, settings.seed)
    tokenizer = make_tokenizer(
        (row.text for row in training_rows),
        min_frequency=settings.min_frequency,
        max_size=settings.max_vocabulary,
    )
    training, validation = (_encode(tokenizer, part, labels) for part in (training_rows, validation_rows))
    arguments = {
        "vocab_size": tokenizer.get_vocab_size(),
        "num_labels": len(labels),
        "embedding_dim": settings.embedding_dim,
        "hidden_size": settings.hidden_size,
    }
    torch.manual_seed(settings.seed)
    model = make_classifier(arguments, settings.dropout)
    unknown_id = tokenizer.token_to_id(UNKNOWN)
    assert unknown_id is not None
    best = _fit(model, training, validation, settings, unknown_id)
    model.load_state_dict(best.state)
    _save(model, tokenizer, arguments, labels, directory)
    return TrainingReport(
        num_training=len(training_rows),
        num_validation=len(validation_rows),
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
    return accuracy(model, _encode(tokenizer, known, labels)) * len(known) / len(rows)


@torch.no_grad()
def accuracy(model: TextClassifier, rows: _Encoded) -> float:
    """The share of rows that a model labels rightly."""
    model.eval()
    num_right = 0
    for indexes in torch.split(torch.arange(len(rows.labels)), 256):
        input_ids, lengths, labels = rows.batch(indexes)
        num_right += int((model(input_ids, lengths).argmax(-1) == labels).sum())
    return num_right / len(rows.labels)


@dataclass(slots=True)
class _Best:
    """The model of the epoch with the least validation loss."""

    state: dict[str, Tensor]
    loss: float = float("inf")
    epoch: int = 0
    num_epochs: int = 0


def _fit(
    model: TextClassifier, training: _Encoded, validation: _Encoded, settings: TrainingSettings, unknown_id: int
) -> _Best:
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    randomness = torch.Generator().manual_seed(settings.seed)
    best = _Best({})
    with tqdm(total=settings.max_epochs, desc="training", unit="epoch", file=sys.stderr) as progress:
        for epoch in range(1, settings.max_epochs + 1):
            model.train()
            for indexes in torch.split(torch.randperm(len(training.labels), generator=randomness), settings.batch_size):
                input_ids, lengths, labels = training.batch(indexes)
                is_hidden = torch.rand(len(input_ids), generator=randomness) < settings.word_dropout
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(input_ids.masked_fill(is_hidden, unknown_id), lengths), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            loss_now = _loss(model, validation)
            best.num_epochs = epoch
            progress.update()
            progress.set_postfix(validation_loss=f"{loss_now:.4f}")
            if loss_now < best.loss:
                best.loss, best.epoch = loss_now, epoch
                best.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            elif epoch - best.epoch >= settings.patience:
                break
    return best


@torch.no_grad()
def _loss(model: TextClassifier, rows: _Encoded) -> float:
    model.eval()
    input_ids, lengths, labels = rows.batch(torch.arange(len(rows.labels)))
    return float(nn.functional.cross_entropy(model(input_ids, lengths), labels))


def _encode(tokenizer: Tokenizer, rows: list[LabelledText], labels: list[str]) -> _Encoded:
    indexes = {label: index for index, label in enumerate(labels)}
    token_ids = [torch.tensor(one.ids, dtype=torch.int64) for one in tokenizer.encode_batch([row.text for row in rows])]
    return _Encoded(token_ids, torch.tensor([indexes[row.label] for row in rows]))


def _save(
    model: TextClassifier, tokenizer: Tokenizer, arguments: dict[str, int], labels: list[str], directory: Path
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, directory)
    save_file(dict(model.state_dict()), str(directory / "model.safetensors"))
    config = {"architecture": ARCHITECTURE, "arguments": arguments, "id2label": dict(enumerate(labels))}
    (directory / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def describe(report: TrainingReport) -> str:
    """The report as a line for people."""
    values = asdict(report)
    return (
        "trained on {num_training} rows in {seconds:.1f} s, {num_epochs} epochs (best: {best_epoch}); "
        "accuracy on {num_validation} validation rows {validation_accuracy:.3f}".format(**values)
    )
