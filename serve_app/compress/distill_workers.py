"""Data-parallel distillation over a cluster, with Ray Train (the extra `train`)."""

import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed import all_reduce
from torch.nn.parallel import DistributedDataParallel

from serve_app.compress.student import Learnt, Lesson
from serve_app.errors import InternalError
from serve_app.training.ray_training import Progress, ray_session, run_workers, shown_progress

_STUDENT = "student.safetensors"


class TrainWorkers:
    """The workers of a Ray Train run, as one of them sees them."""

    def __init__(self, progress: Any) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self._progress = progress
        self._num_done = 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Gradients are averaged while they are computed."""
        return DistributedDataParallel(model)

    def total(self, value: float) -> float:
        """The sum of all workers' values, one for each step."""
        summed = torch.tensor(value, dtype=torch.float64)
        all_reduce(summed)
        self._num_done += 1
        if self.rank == 0:
            self._progress.tell.remote(self._num_done, float(summed))
        return float(summed)


def learn_on_workers(
    lesson: Lesson, num_workers: int, storage: str | None, num_threads: int, *, is_local: bool
) -> Learnt:
    """What `num_workers` workers of the cluster that Ray is connected to make of a lesson.

    All nodes reach the folders that the lesson names, and `storage`; None: this machine alone does the work. A worker
    that dies costs the steps since the last checkpoint, where there is a folder for one. Raises InternalError.
    """
    with (
        ray_session(num_workers, is_local=is_local),
        tempfile.TemporaryDirectory(prefix="rayshard-distill-") as scratch,
    ):
        folder = lesson.checkpoint or Path(storage or scratch)
        progress = ray.remote(num_cpus=0)(Progress).remote()
        config = {
            "lesson": [ray.put(lesson)],
            "progress": progress,
            "num_threads": num_threads,
            "folder": str(folder.absolute()),
        }
        with shown_progress(progress, lesson.settings.num_steps, "distill", "step", "loss"):
            losses = run_workers(_work, config, num_workers, storage)
        if not isinstance(losses, list):
            raise InternalError("the workers ended without a student; see Ray's log")
        path = folder / _STUDENT
        state = {name: tensor.clone() for name, tensor in load_file(str(path)).items()}
        path.unlink()
    return Learnt(state, losses)


def _work(config: dict[str, Any]) -> list[float] | None:
    """One worker's run; the first one writes the student."""
    torch.set_num_threads(config["num_threads"])
    lesson: Lesson = ray.get(config["lesson"][0])
    workers = TrainWorkers(config["progress"])
    model, losses = lesson.learn(workers)
    if workers.rank > 0:
        return None
    folder = Path(config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"partial-{_STUDENT}"
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}, str(partial))
    partial.replace(folder / _STUDENT)
    return losses
