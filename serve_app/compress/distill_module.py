"""A small text classifier trained on a large one: plain modules of input_ids and lengths to logits."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from serve_app.checkpoints.checkpoint_json import read_json
from serve_app.checkpoints.module_files import labels_of
from serve_app.checkpoints.quality_gate import sha256_of
from serve_app.checkpoints.weight_files import find_weight_files
from serve_app.compress.artifact import copy_text_files, new_directory, save_state, write_json
from serve_app.compress.distill import DistillSettings, divergence, take_steps
from serve_app.compress.modules import encode_texts, load_classifier, module_arguments, unknown_id_of
from serve_app.compress.recipe import write_recipe
from serve_app.compress.texts import read_texts
from serve_app.errors import ConfigError
from serve_app.models.batch_stage import BatchStage
from serve_app.models.torch_model import import_class
from serve_app.training.csv_rows import LabelledText, read_csv

_HIDDEN_SHARE = 0.2  # of the words of a batch


@dataclass(frozen=True, slots=True)
class ModuleTexts:
    """What to learn from: a CSV file of texts and labels, or a text on each line, on which only the teacher counts."""

    labelled: Path
    unlabelled: Path | None = None
    text_column: str = "text"
    label_column: str = "label"


@dataclass(frozen=True, slots=True)
class _Entry:
    token_ids: list[int]
    label: int | None  # None: the teacher alone says what it is


@dataclass(frozen=True, slots=True)
class _Student:
    module: nn.Module
    config: dict[str, Any]  # what its config.json will be


def train_small_module(
    teacher: Path,
    student: Path,
    target: Path,
    texts: ModuleTexts,
    settings: DistillSettings,
    *,
    checkpoint: Path | None = None,
    can_replace: bool = False,
) -> list[float]:
    """Train a student and write it; returns the losses. Raises ConfigError.

    student: a module's directory, or a config.json whose `arguments` (and `architecture`) replace the teacher's.
    """
    entries = _read_entries(teacher, texts)
    taught, unknown_id = load_classifier(teacher), unknown_id_of(teacher)
    made = _make_student(teacher, student, settings.seed)
    _check_outputs(taught, made.module, entries[0], student)

    def losses_of(module: nn.Module, step: int) -> Iterator[Tensor]:
        yield _loss(taught, module, _draw(entries, unknown_id, settings, step), settings)

    losses = take_steps(made.module, losses_of, settings, checkpoint)
    state = made.module.state_dict()
    num_bytes = sum(tensor.nbytes for tensor in state.values())
    with new_directory(target, can_replace=can_replace, needed_bytes=num_bytes) as staging:
        save_state(staging, state)
        write_json(staging / "config.json", made.config)
        copy_text_files(teacher, staging)
        done = {**asdict(settings), "teacher": teacher.name, "texts_sha256": sha256_of(texts.labelled)}
        if texts.unlabelled is not None:
            done["unlabelled_sha256"] = sha256_of(texts.unlabelled)
        write_recipe(staging, student if student.is_dir() else teacher, "distill", done)
    return losses


def _read_entries(teacher: Path, texts: ModuleTexts) -> list[_Entry]:
    labels: Sequence[str] = labels_of(teacher)
    rows: list[LabelledText] = []
    plain: list[str] = []
    if texts.labelled.suffix == ".csv":
        rows = read_csv(texts.labelled, texts.text_column, texts.label_column).rows
        spare = sorted({row.label for row in rows} - set(labels))
        if spare:
            raise ConfigError(
                f"{texts.labelled} has a label {spare[0][:80]!r} that {teacher} does not know; leave it out"
            )
    else:
        plain = read_texts(texts.labelled)
    if texts.unlabelled is not None:
        plain += read_texts(texts.unlabelled)
    known: list[int | None] = [labels.index(row.label) for row in rows]
    token_ids = encode_texts(teacher, [*(row.text for row in rows), *plain])
    return [_Entry(ids, label) for ids, label in zip(token_ids, [*known, *[None] * len(plain)], strict=True) if ids]


def _make_student(teacher: Path, student: Path, seed: int) -> _Student:
    """Before it has learnt: weights of a directory, or random ones by a config.json."""
    path = student / "config.json" if student.is_dir() else student
    if not path.is_file():
        raise ConfigError(f"--student {student} is neither a module's directory nor a config.json; give one of them")
    theirs, own = read_json(teacher / "config.json"), read_json(path)
    if own.get("quantization_config") is not None:
        raise ConfigError(f"--student {student} is quantized; give one that is not")
    if not isinstance(own.get("architecture", ""), str):
        raise ConfigError(f"--student {student}: architecture is not text; write package.module:Class")
    architecture = str(own.get("architecture") or theirs["architecture"])
    arguments = module_arguments(own, path.parent)
    if architecture == theirs["architecture"]:
        arguments = {**module_arguments(theirs, teacher), **arguments}
    kept = {name: value for name, value in theirs.items() if name != "quantization_config"}
    config = {**kept, "architecture": architecture, "arguments": arguments}
    torch.manual_seed(seed)
    try:
        module = import_class(architecture)(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--student {student}: {architecture} cannot be built of {arguments} ({error})") from error
    if arguments.get("vocab_size") != module_arguments(theirs, teacher).get("vocab_size"):
        raise ConfigError(f"--student {student} has another vocab_size than its teacher; they must be one")
    if student.is_dir():
        state = {name: tensor for file in find_weight_files(student) for name, tensor in load_file(str(file)).items()}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ConfigError(f"--student {student}: the weights are not of {architecture} ({error})") from error
    return _Student(module.float(), config)


def _check_outputs(teacher: BatchStage, student: nn.Module, entry: _Entry, named: Path) -> None:
    """Raises ConfigError when the two do not answer the same question about the same tokens."""
    theirs = _logits(teacher, [entry])
    token_ids, lengths = _packed([entry])
    try:
        with torch.no_grad():
            ours = student.eval()(token_ids, lengths)
    except (TypeError, IndexError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"--student {named} does not take the teacher's tokens ({type(error).__name__}); give a module "
            "of input_ids and lengths to logits with the teacher's vocabulary"
        ) from error
    if not isinstance(ours, Tensor) or ours.shape != theirs.shape:
        raise ConfigError(f"--student {named} does not give the {theirs.shape[-1]} logits that its teacher gives")


def _draw(entries: Sequence[_Entry], unknown_id: int | None, settings: DistillSettings, step: int) -> list[_Entry]:
    """The batch of a step, which follows from its number alone; some of its words are made unknown to both models.

    So the teacher is asked about more texts than there are, and the student does not learn them by heart.
    """
    randomness = random.Random(f"{settings.seed}-{step}")
    chosen: list[_Entry] = []
    num_tokens = 0
    while num_tokens < settings.batch_tokens:
        entry = randomness.choice(entries)
        num_tokens += len(entry.token_ids)
        if unknown_id is not None:
            entry = _Entry(
                [unknown_id if randomness.random() < _HIDDEN_SHARE else token for token in entry.token_ids], entry.label
            )
        chosen.append(entry)
    return chosen


def _loss(teacher: BatchStage, student: nn.Module, batch: list[_Entry], settings: DistillSettings) -> Tensor:
    ours = student(*_packed(batch)).float()  # [B, C]
    loss: Tensor = ours.sum() * 0
    known = [place for place, one in enumerate(batch) if one.label is not None]
    if known and settings.task_weight:
        labels = torch.tensor([one.label for one in batch if one.label is not None])
        loss = loss + settings.task_weight * cross_entropy(ours[known], labels) * (len(known) / len(batch))
    if settings.kl_weight:
        loss = loss + settings.kl_weight * divergence(ours, _logits(teacher, batch), settings)
    return loss


@torch.no_grad()
def _logits(teacher: BatchStage, batch: Sequence[_Entry]) -> Tensor:
    """The teacher's, [B, C] float32."""
    token_ids, lengths = _packed(batch)
    return teacher.forward({"input_ids": token_ids, "lengths": lengths}, None)["logits"].float()


def _packed(batch: Sequence[_Entry]) -> tuple[Tensor, Tensor]:
    """input_ids [T] int64, lengths [B] int64."""
    token_ids = torch.tensor([token for one in batch for token in one.token_ids], dtype=torch.int64)
    return token_ids, torch.tensor([len(one.token_ids) for one in batch])
