"""Training a small model on a large one's distributions (Hinton et al., arXiv:1503.02531).

loss = task + weight * KL at a temperature: KL(student || teacher) as in MiniLLM (arXiv:2306.08543), or the other way.
Texts without labels add to the divergence alone. The same settings draw the same batches, whatever came between.
"""

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm
from transformers import PreTrainedModel

from serve_app.compress.top_teacher import TopTeacher, top_divergence
from serve_app.errors import ConfigError

_IGNORED = -100
_SAVE_STEPS = 50


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """How a student is trained."""

    num_steps: int = 200
    batch_tokens: int = 2048
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    kl_weight: float = 1.0  # 0: the teacher is not asked
    task_weight: float = 1.0
    temperature: float = 1.0
    direction: Literal["reverse", "forward"] = "reverse"  # KL(student || teacher), KL(teacher || student)
    seed: int = 0

    def check(self) -> None:
        """Raises ConfigError that names every value that nothing can be trained with."""
        positive: dict[str, float] = {"--steps": self.num_steps, "--batch-tokens": self.batch_tokens}
        positive |= {"--learning-rate": self.learning_rate, "--temperature": self.temperature}
        bad = [
            f"{name} {value:g} cannot be; give more than 0"
            for name, value in positive.items()
            if not 0 < value < math.inf
        ]
        if not 0 <= self.kl_weight < math.inf:
            bad.append(f"--kl-weight {self.kl_weight:g} cannot be; give 0 or more")
        if bad:
            raise ConfigError("\n".join(bad))


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """Sequences of about one length: ids and labels [B, T] int64, the next token or -100."""

    ids: Tensor
    labels: Tensor
    is_real: Tensor  # [B, T] bool: where the divergence counts
    num_labels: int  # in the batches of all workers
    num_real: int
    sequences: list[list[int]]


class Workers(Protocol):
    """The processes that train together, as one of them sees them."""

    rank: int
    world_size: int

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose gradients are the mean over all."""

    def total(self, value: float) -> float:
        """The sum of all workers' values."""


class LoneWorker:
    """One process."""

    rank = 0
    world_size = 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as it is."""
        return model

    def total(self, value: float) -> float:
        """The value as it is."""
        return value


def distill(
    teacher: PreTrainedModel | TopTeacher | None,
    student: PreTrainedModel,
    labelled: Sequence[list[int]],
    unlabelled: Sequence[list[int]],
    settings: DistillSettings,
    checkpoint: Path | None = None,
    workers: Workers | None = None,
) -> list[float]:
    """Train the student in place; gives the losses of the steps that were taken. An interrupted run is taken up again
    from `checkpoint`, a folder, when its settings are the same. Each of several workers takes its share of the
    sequences of every batch, and all end with what a single one would have. Raises ConfigError."""
    own = workers or LoneWorker()

    def losses_of(wrapped: nn.Module, step: int) -> Iterator[Tensor]:
        for batch in _draw(labelled, unlabelled, settings, step, own):
            yield _loss(teacher, wrapped, batch, settings)

    return take_steps(student, losses_of, settings, checkpoint, own)


def take_steps(
    student: nn.Module,
    losses_of: Callable[[nn.Module, int], Iterator[Tensor]],
    settings: DistillSettings,
    checkpoint: Path | None = None,
    workers: Workers | None = None,
) -> list[float]:
    """Train the student in place on the sum of the losses that it has in each step; see distill."""
    workers = workers or LoneWorker()
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad_(True) is not None]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    first = 0 if checkpoint is None else _resume(checkpoint, student, optimizer, settings)
    student.train()
    wrapped = workers.wrap(student)
    losses = []
    for step in tqdm(range(first, settings.num_steps), desc="distill", unit="step", disable=None):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _scale(settings, step)
        loss = torch.zeros(())
        for part in losses_of(wrapped, step):
            torch.autograd.backward(part * workers.world_size)  # gradients are averaged over the workers
            loss += part.detach()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(workers.total(loss.item()))
        if checkpoint is not None and workers.rank == 0 and (step + 1) % _SAVE_STEPS == 0:
            _save(checkpoint, student, optimizer, settings, step + 1)
    student.eval()
    return losses


def _loss(
    teacher: PreTrainedModel | TopTeacher | None, student: nn.Module, batch: SequenceBatch, settings: DistillSettings
) -> Tensor:
    """This worker's part of the sum that is the mean over the batches of all."""
    logits = student(input_ids=batch.ids, use_cache=False).logits.float()  # [B, T, V]
    loss: Tensor = logits.sum() * 0  # every parameter has a gradient, whatever a worker's share is
    if settings.task_weight and batch.num_labels:
        flat, labels = logits.flatten(0, 1), batch.labels.flatten()
        summed = cross_entropy(flat, labels, ignore_index=_IGNORED, reduction="sum")
        loss = loss + settings.task_weight * summed / batch.num_labels
    if teacher is not None and settings.kl_weight:
        num_own = int(batch.is_real.sum())
        if num_own:
            own = _divergence_of(teacher, logits[batch.is_real], batch, settings)
            loss = loss + settings.kl_weight * own * (num_own / batch.num_real)
    return loss


def _divergence_of(
    teacher: PreTrainedModel | TopTeacher, student: Tensor, batch: SequenceBatch, settings: DistillSettings
) -> Tensor:
    """student: logits [N, V] of the batch's real tokens."""
    if isinstance(teacher, TopTeacher):
        return top_divergence(student, teacher.of(batch.sequences), is_reverse=settings.direction == "reverse")
    with torch.no_grad():
        theirs = teacher(input_ids=batch.ids, use_cache=False).logits.float()
    return divergence(student, theirs[batch.is_real], settings)


def divergence(student: Tensor, teacher: Tensor, settings: DistillSettings) -> Tensor:
    """Mean over tokens, student and teacher [T, V] logits; times temperature squared, so that its gradient stays."""
    temperature = settings.temperature
    ours = (student / temperature).log_softmax(dim=-1)
    theirs = (teacher / temperature).log_softmax(dim=-1)
    if settings.direction == "reverse":
        per_token = (ours.exp() * (ours - theirs)).sum(dim=-1)
    else:
        per_token = (theirs.exp() * (theirs - ours)).sum(dim=-1)
    return per_token.mean() * temperature**2


def _draw(
    labelled: Sequence[list[int]],
    unlabelled: Sequence[list[int]],
    settings: DistillSettings,
    step: int,
    workers: Workers,
) -> Iterator[SequenceBatch]:
    """This worker's share of the batches of a step, which follow from its number alone."""
    rng = random.Random(f"{settings.seed}-{step}")
    for sequences, is_labelled in ((labelled, True), (unlabelled, False)):
        if sequences:
            share = 0.5 if labelled and unlabelled else 1.0
            chosen = _fill(sequences, int(settings.batch_tokens * share), rng)
            own = chosen[workers.rank :: workers.world_size]
            num_tokens = sum(len(one) - 1 for one in chosen)
            yield _batch(own or chosen[:1], num_tokens, is_labelled=is_labelled, is_empty=not own)


def _fill(sequences: Sequence[list[int]], num_tokens: int, rng: random.Random) -> list[list[int]]:
    chosen = [rng.choice(sequences)]
    while sum(map(len, chosen)) < num_tokens:
        chosen.append(rng.choice(sequences))
    return chosen


def _batch(sequences: list[list[int]], num_tokens: int, *, is_labelled: bool, is_empty: bool) -> SequenceBatch:
    """num_tokens: of all workers' shares; is_empty: this one has none, and its sequences count for nothing."""
    longest = max(map(len, sequences)) - 1
    ids = torch.stack([pad(torch.tensor(one[:-1]), (0, longest - len(one) + 1)) for one in sequences])
    targets = torch.stack(
        [pad(torch.tensor(one[1:]), (0, longest - len(one) + 1), value=_IGNORED) for one in sequences]
    )
    if is_empty:
        targets = torch.full_like(targets, _IGNORED)
    is_real = targets != _IGNORED
    labels = targets if is_labelled else torch.full_like(targets, _IGNORED)
    return SequenceBatch(ids, labels, is_real, num_tokens if is_labelled else 0, num_tokens, sequences)


def _scale(settings: DistillSettings, step: int) -> float:
    """Linear warm-up, then linear to zero."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    return (settings.num_steps - step) / max(1, settings.num_steps - settings.warmup_steps)


def _save(
    folder: Path, student: nn.Module, optimizer: torch.optim.Optimizer, settings: DistillSettings, step: int
) -> None:
    """Write all that goes on from here; it takes the place of what was there at once."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in student.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor.contiguous() for name, tensor in state.items()}
    partial = folder / "partial.safetensors"
    written = {"step": str(step), "settings": json.dumps(asdict(settings))}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, str(partial), metadata=written)
    partial.replace(folder / "checkpoint.safetensors")


def _resume(folder: Path, student: nn.Module, optimizer: torch.optim.Optimizer, settings: DistillSettings) -> int:
    """Take up what was written; gives the next step."""
    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    if json.loads(header["settings"]) != asdict(settings):
        raise ConfigError(f"{path} was written under other settings; give the same, or remove it")
    tensors = load_file(str(path))
    prefix = "model."
    student.load_state_dict(
        {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
    )
    content = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _prefix, index, leaf = name.split(".")
            content["state"].setdefault(int(index), {})[leaf] = tensor
    optimizer.load_state_dict(content)
    return int(header["step"])
