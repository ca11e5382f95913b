"""Shards of one generator as threads of this process: what they compute, without processes and without a network."""

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from serve_app.checkpoints.encoder_spec import EncoderChoices, check_encoder, read_encoder_spec
from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.engine.batch_loader import load_batch_stage
from serve_app.engine.loader import load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.errors import ConfigError
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.planning.planner import plan_shards
from serve_app.scheduling.output import SequenceOutput
from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest
from serve_app.types.shards import BatchModelSettings, EngineLimits, ShardSpec
from serve_app.types.steps import StepInput, StepOutput

_PATIENCE_S = 60.0
Result = TypeVar("Result")
CPU = torch.device("cpu")


class StageRanks:
    """Where the ranks of one stage meet."""

    def __init__(self, num_ranks: int) -> None:
        self.barrier = threading.Barrier(num_ranks)
        self.tensors: list[Tensor] = [torch.empty(0)] * num_ranks


class ThreadCommunicator(LoneCommunicator):
    """Collectives among threads, and hops between them."""

    def __init__(
        self, shard: ShardSpec, ranks: StageRanks, queues: dict[tuple[int, int], "queue.Queue[Tensor | None]"]
    ) -> None:
        self._shard = shard
        self._ranks = ranks
        self._queues = queues

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """See Communicator."""
        return tensor.copy_(torch.stack(self.all_gather(tensor)).sum(0))

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """See Communicator."""
        self._ranks.tensors[self._shard.rank] = tensor.clone()
        self._ranks.barrier.wait(_PATIENCE_S)
        gathered = list(self._ranks.tensors)
        self._ranks.barrier.wait(_PATIENCE_S)
        return gathered

    def send_next(self, tensor: Tensor) -> None:
        """See Communicator."""
        self._queues[self._shard.stage + 1, self._shard.rank].put(tensor.clone())

    def receive_previous(self, tensor: Tensor) -> Tensor:
        """See Communicator."""
        received = self._queues[self._shard.stage, self._shard.rank].get(timeout=_PATIENCE_S)
        if received is None:
            raise threading.BrokenBarrierError
        return tensor.copy_(received)

    def stop(self) -> None:
        """Wake whoever waits for a shard that has failed."""
        self._ranks.barrier.abort()
        for waiting in self._queues.values():
            waiting.put(None)


class ThreadShards:
    """A checkpoint split over threads."""

    def __init__(self, directory: Path, pipeline: int, tensor: int, limits: EngineLimits) -> None:
        shards = plan_shards(read_model_spec(directory), pipeline, tensor).shards
        ranks = [StageRanks(tensor) for _ in range(pipeline)]
        queues: dict[tuple[int, int], queue.Queue[Tensor | None]] = {
            (shard.stage, shard.rank): queue.Queue() for shard in shards
        }
        self._links = [ThreadCommunicator(shard, ranks[shard.stage], queues) for shard in shards]
        self._pool = ThreadPoolExecutor(len(shards))
        self._limits = limits

        def load(index: int) -> ModelRunner:
            stage = load_stage(directory, "float32", shards[index], self._links[index], CPU).stage
            return ModelRunner(stage, limits, self._links[index], CPU)

        self.runners = self._on_all(load)

    def generate(self, requests: Iterable[GenerateRequest], take: Callable[[list[SequenceOutput]], None]) -> None:
        """Run requests that come together to their ends, step after step."""
        scheduler = Scheduler(self._limits, num_stages=1, max_queued=1000, has_prefix_cache=False)
        for request in requests:
            scheduler.add(request)
        while (step := scheduler.schedule()) is not None:
            outputs = self._on_all(partial(self._run, step))
            (output,) = [one for one in outputs if one is not None]
            take(scheduler.update(output))

    def _run(self, step: StepInput, index: int) -> StepOutput | None:
        return self.runners[index].run(step)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _on_all(self, run: Callable[[int], Result]) -> list[Result]:
        def guarded(index: int) -> Result:
            try:
                return run(index)
            except BaseException:
                for link in self._links:
                    link.stop()
                raise

        futures = [self._pool.submit(guarded, index) for index in range(len(self._links))]
        errors = [error for future in futures if (error := future.exception()) is not None]
        real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
        for error in (*real, *errors):
            raise error
        return [future.result() for future in futures]


def embed_texts(directory: Path, split: tuple[int, int], texts: list[Tensor], *, has_types: bool) -> Tensor:
    """Mean-pooled hidden states [B, D] of texts by an encoder split over threads."""
    pipeline, tensor = split
    encoder = read_encoder_spec(EncoderChoices("embed"), directory)
    problems = check_encoder(encoder, tensor, None)
    if problems:
        raise ConfigError(problems[0])
    shards = plan_shards(encoder.spec, pipeline, tensor).shards
    ranks = [StageRanks(tensor) for _ in range(pipeline)]
    inputs = {"input_ids": torch.cat(texts), "lengths": torch.tensor([len(text) for text in texts])}
    if has_types:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])

    def run(rank: int) -> Tensor:
        hidden: dict[str, Tensor] | None = None
        for shard in shards:
            if shard.rank == rank:
                settings = BatchModelSettings("m", str(directory), "embed", "float32", shard, pooling="mean")
                stage = load_batch_stage(settings, ThreadCommunicator(shard, ranks[shard.stage], {}), CPU)
                with torch.inference_mode():
                    hidden = stage.forward(inputs, hidden)
        assert hidden is not None
        return hidden["embedding"]

    with ThreadPoolExecutor(tensor) as pool:
        return next(iter(list(pool.map(run, range(tensor)))))
