"""Data-parallel training over a cluster, with Ray Train: each worker takes its share of every batch.

A worker that dies costs the epoch under way: the others are started anew from the snapshot of the last one.
"""

import logging
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed import all_reduce
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from serve_app.errors import InternalError
from serve_app.training.fitting import Best, Snapshot
from serve_app.training.text_training import PreparedTraining

_MAX_FAILURES = 3
_LOOK_S = 0.5
_LOCAL_HOST = "127.0.0.1"
_SNAPSHOT = "snapshot.safetensors"


class Progress:
    """How far the workers are, in epochs or steps: an actor that they report to, and that is asked for it."""

    def __init__(self) -> None:
        self._now = (0, 0.0)

    def tell(self, step: int, loss: float) -> None:
        """One has ended."""
        self._now = (step, loss)

    def now(self) -> tuple[int, float]:
        """The last that has ended, and its loss; 0 before the first has."""
        return self._now


class WorkerGroup:
    """The workers of a Ray Train run, as one of them sees them."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Gradients are averaged while they are computed."""
        return DistributedDataParallel(model)

    def total(self, value: float) -> float:
        """The sum of all workers' values."""
        summed = torch.tensor(value, dtype=torch.float64)
        all_reduce(summed)
        return float(summed)

    def load(self) -> Snapshot | None:
        """The snapshot of the last epoch that all have ended."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as directory, safe_open(str(Path(directory) / _SNAPSHOT), "pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return Snapshot.of(file.metadata()["head"], tensors)

    def save(self, snapshot: Snapshot, epoch: int, validation_loss: float) -> None:
        """Report the epoch; the first worker's snapshot is kept."""
        metrics: dict[str, Any] = {"epoch": epoch, "validation_loss": validation_loss}
        if self.rank > 0:
            ray.train.report(metrics)
            return
        self._progress.tell.remote(epoch, validation_loss)
        with tempfile.TemporaryDirectory() as directory:
            tensors = {name: tensor.contiguous() for name, tensor in snapshot.tensors.items()}
            save_file(tensors, Path(directory) / _SNAPSHOT, metadata={"head": snapshot.head()})
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(directory))


def train_on_workers(
    prepared: PreparedTraining, num_workers: int, storage: str | None, num_threads: int, *, is_local: bool
) -> Best:
    """The best epoch's model, trained by `num_workers` workers of the cluster that Ray is connected to.

    `storage` is a folder or URI that all nodes reach; None: a folder of this machine, for a cluster of one. Ray is
    started on this machine, and stopped in the end, when `is_local`.
    """
    with ray_session(num_workers, is_local=is_local):
        progress = ray.remote(num_cpus=0)(Progress).remote()
        config = {"prepared": [ray.put(prepared)], "progress": progress, "num_threads": num_threads}
        with shown_progress(progress, prepared.settings.max_epochs, "training", "epoch", "validation_loss"):
            best = run_workers(_work, config, num_workers, storage)
    if not isinstance(best, Best):
        raise InternalError("the workers ended without a model; see Ray's log")
    return best


@contextmanager
def ray_session(num_workers: int, *, is_local: bool) -> Iterator[None]:
    """A connection to the cluster, or a Ray of this machine's own, which ends with the `with`."""
    if is_local:
        ray.init(
            address="local",
            num_cpus=num_workers + 1,  # a reservation: workers share the cores there are
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _node_ip_address=_LOCAL_HOST,
        )
    else:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def run_workers(
    work: Callable[[dict[str, Any]], Any], config: dict[str, Any], num_workers: int, storage: str | None
) -> Any:
    """Run `work` on `num_workers` workers that are one process group; gives what the first returns.

    When one dies, all are started anew, a few times.
    """
    with tempfile.TemporaryDirectory(prefix="rayshard-train-") as directory:
        trainer = TorchTrainer(
            work,
            train_loop_config=config,
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                name="rayshard",
                storage_path=storage or directory,
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            ),
        )
        return trainer.fit().return_value


@contextmanager
def shown_progress(progress: Any, num_steps: int, title: str, unit: str, loss_name: str) -> Iterator[None]:
    """A bar that grows meanwhile."""
    is_over = threading.Event()

    def show() -> None:
        with tqdm(total=num_steps, desc=title, unit=unit, file=sys.stderr) as bar:
            while not is_over.wait(_LOOK_S):
                epoch, loss = ray.get(progress.now.remote())
                if epoch != bar.n:
                    bar.n = epoch
                    bar.set_postfix({loss_name: f"{loss:.4f}"})

    shower = threading.Thread(target=show)
    shower.start()
    try:
        yield
    finally:
        is_over.set()
        shower.join()


def _work(config: dict[str, Any]) -> Best | None:
    """One worker's run; the first one's result is kept."""
    torch.set_num_threads(config["num_threads"])
    prepared: PreparedTraining = ray.get(config["prepared"][0])
    group = WorkerGroup(config["progress"])
    best = prepared.run(group)
    return best if group.rank == 0 else None
