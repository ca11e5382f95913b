"""Adam with early stopping on the validation loss, in one process or data-parallel in several."""

import json
import sys
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from serve_app.config.training import TrainingSettings
from serve_app.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Labelled texts as tokens."""

    token_ids: list[Tensor]  # [T] int64 each
    labels: Tensor  # [N] int64

    def batch(self, indexes: Tensor) -> "RowBatch":
        """Some of the rows, in the order of indexes [B]."""
        chosen = [self.token_ids[index] for index in indexes.tolist()]
        return RowBatch(torch.cat(chosen), torch.tensor([len(one) for one in chosen]), self.labels[indexes])


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows packed one after the other."""

    input_ids: Tensor  # [T] int64
    lengths: Tensor  # [B] int64
    labels: Tensor  # [B] int64

    def share(self, rank: int, world_size: int) -> "RowBatch":
        """The rows of one of several processes; there may be none."""
        if world_size == 1:
            return self
        places = range(rank, len(self.labels), world_size)
        pieces = torch.split(self.input_ids, self.lengths.tolist())
        own = [pieces[place] for place in places]
        chosen = slice(rank, None, world_size)
        return RowBatch(torch.cat(own) if own else self.input_ids[:0], self.lengths[chosen], self.labels[chosen])


class Group(Protocol):
    """The processes that train together; this one is one of them."""

    rank: int
    world_size: int

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, so that its gradients are the mean over all processes."""
        ...

    def total(self, value: float) -> float:
        """The sum of all processes' values, the same in each."""
        ...

    def load(self) -> "Snapshot | None":
        """Where an earlier attempt at this training was; None: this is the first."""
        ...

    def save(self, snapshot: "Snapshot", epoch: int, validation_loss: float) -> None:
        """Called by every process after each epoch."""
        ...


class LoneGroup:
    """One process."""

    rank = 0
    world_size = 1

    def __init__(self, max_epochs: int) -> None:
        self._progress = tqdm(total=max_epochs, desc="training", unit="epoch", file=sys.stderr)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as it is."""
        return model

    def total(self, value: float) -> float:
        """The value as it is."""
        return value

    def load(self) -> None:
        """A single process starts from the beginning."""

    def save(self, _snapshot: "Snapshot", _epoch: int, validation_loss: float) -> None:
        """Show how far it is."""
        self._progress.update()
        self._progress.set_postfix(validation_loss=f"{validation_loss:.4f}")

    def close(self) -> None:
        """End the progress bar."""
        self._progress.close()


@dataclass(slots=True)
class Best:
    """The model of the epoch with the least validation loss."""

    state: dict[str, Tensor] = field(default_factory=dict)
    loss: float = float("inf")
    epoch: int = 0
    num_epochs: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a training needs to continue where it was."""

    tensors: dict[str, Tensor]
    best_loss: float
    best_epoch: int
    num_epochs: int

    def head(self) -> str:
        """The numbers, as JSON."""
        return json.dumps([self.best_loss, self.best_epoch, self.num_epochs])

    @classmethod
    def of(cls, head: str, tensors: dict[str, Tensor]) -> "Snapshot":
        """The snapshot that `head` and its tensors were of."""
        return cls(tensors, *json.loads(head))


def fit(
    model: nn.Module,
    training: EncodedRows,
    validation: EncodedRows,
    settings: TrainingSettings,
    unknown_id: int,
    group: Group,
) -> Best:
    """The best epoch's model. model: input_ids [T], lengths [B] -> logits [B, C]. Every process of a group calls it.

    Raises ConfigError when there is none: no loss was a finite number.
    """
    best = _Fit(model, settings, unknown_id, group).run(training, validation)
    if not best.epoch:
        raise ConfigError(
            f"the validation loss of {best.num_epochs} epochs was never a finite number; give a lower --learning-rate "
            f"than {settings.learning_rate:g}"
        )
    return best


class _Fit:
    def __init__(self, model: nn.Module, settings: TrainingSettings, unknown_id: int, group: Group) -> None:
        self._model = model
        self._settings = settings
        self._unknown_id = unknown_id
        self._group = group
        self._optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        self._randomness = torch.Generator().manual_seed(settings.seed)  # the same in all processes
        self._best = Best()
        if group.rank > 0:
            torch.manual_seed(settings.seed + group.rank)  # another dropout in each

    def run(self, training: EncodedRows, validation: EncodedRows) -> Best:
        snapshot = self._group.load()
        if snapshot is not None:
            self._restore(snapshot)
        best, settings = self._best, self._settings
        wrapped = self._group.wrap(self._model)
        for epoch in range(best.num_epochs + 1, settings.max_epochs + 1):
            if best.epoch and best.num_epochs - best.epoch >= settings.patience:
                break
            self._model.train()
            order = torch.randperm(len(training.labels), generator=self._randomness)
            for indexes in torch.split(order, settings.batch_size):
                self._step(wrapped, training.batch(indexes))
            loss = self._validation_loss(validation)
            best.num_epochs = epoch
            if loss < best.loss:
                best.loss, best.epoch = loss, epoch
                best.state = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
            self._group.save(self._snapshot(), epoch, loss)
        return best

    def _step(self, wrapped: nn.Module, batch: RowBatch) -> None:
        """One step on a batch, of which each process has its share; the gradient is that of the whole."""
        is_hidden = torch.rand(len(batch.input_ids), generator=self._randomness) < self._settings.word_dropout
        hidden = RowBatch(batch.input_ids.masked_fill(is_hidden, self._unknown_id), batch.lengths, batch.labels)
        share = hidden.share(self._group.rank, self._group.world_size)
        weight = len(share.labels) / len(batch.labels) * self._group.world_size
        if not len(share.labels):  # every process takes part in every step
            share = hidden.share(0, len(batch.labels))
        self._optimizer.zero_grad()
        loss = nn.functional.cross_entropy(wrapped(share.input_ids, share.lengths), share.labels) * weight
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    @torch.no_grad()
    def _validation_loss(self, rows: EncodedRows) -> float:
        self._model.eval()
        share = rows.batch(torch.arange(len(rows.labels))).share(self._group.rank, self._group.world_size)
        if not len(share.labels):
            return self._group.total(0.0)
        loss = float(nn.functional.cross_entropy(self._model(share.input_ids, share.lengths), share.labels))
        return self._group.total(loss * (len(share.labels) / len(rows.labels)))

    def _snapshot(self) -> Snapshot:
        tensors = {f"model.{name}": tensor for name, tensor in self._model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.state.items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": tensor for name, tensor in values.items()}
        tensors["randomness"] = self._randomness.get_state()
        return Snapshot(tensors, self._best.loss, self._best.epoch, self._best.num_epochs)

    def _restore(self, snapshot: Snapshot) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}}
        for name, tensor in snapshot.tensors.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = tensor
        self._model.load_state_dict(parts["model"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["adam"].items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        self._randomness.set_state(snapshot.tensors["randomness"])
        self._best = Best(parts["best"], snapshot.best_loss, snapshot.best_epoch, snapshot.num_epochs)
