"""The life of a shard whose models are done with an entry after one step: meet the others, load, run steps."""

import time

import torch

from serve_app.engine.batch_loader import load_batch_stage
from serve_app.engine.batch_runner import BatchRunner
from serve_app.engine.shard_loop import ShardLoop
from serve_app.models.batch_stage import BatchStage
from serve_app.parallel.communicator import (
    Communicator,
    GroupCommunicator,
    LoneCommunicator,
    Store,
    connect_store,
    open_store,
)
from serve_app.types.shards import (
    BatchModelReport,
    BatchShardSettings,
    EngineLimits,
    Rendezvous,
    ShardReport,
)
from serve_app.types.steps import BatchStep
from serve_app.wire.links import ControlAddress


class BatchEngineShard:
    """One shard of such models. Its methods are called in this order: open_store (one shard of a group), load, run."""

    def __init__(self, settings: BatchShardSettings, host: str) -> None:
        torch.set_num_threads(settings.num_threads)
        self._settings = settings
        self._host = host
        self._device = torch.device("cuda:0" if settings.device == "cuda" else "cpu")
        self._store: Store | None = None
        self._communicator: Communicator = LoneCommunicator()
        self._runner: BatchRunner | None = None

    def open_store(self, rendezvous_s: float) -> int:
        """Listen for the rest of the group; gives the port."""
        store = open_store(self._host, rendezvous_s)
        self._store = store
        return int(store.port)

    def load(self, rendezvous: Rendezvous | None) -> ShardReport:
        """Meet the group and read this shard's tensors."""
        started = time.monotonic()
        shard = self._settings.shard
        if rendezvous is not None:
            if self._store is None:
                self._store = connect_store(rendezvous)
            self._communicator = GroupCommunicator(self._store, shard, rendezvous, self._device, self._host)
        stages = [load_batch_stage(model, self._communicator, self._device) for model in self._settings.models]
        self._runner = BatchRunner(stages, shard, self._communicator, self._device)
        reports = [_report(model.name, stage) for model, stage in zip(self._settings.models, stages, strict=True)]
        num_bytes = sum(stage.parameter_bytes for stage in stages)
        return ShardReport(num_bytes, 0, time.monotonic() - started, reports)

    def allocate(self, _limits: EngineLimits) -> None:
        """There is no cache to make."""

    def run(self, address: ControlAddress) -> None:
        """Run the Router's steps until it says stop. An exception here is the end of the whole group."""
        assert self._runner is not None
        ShardLoop(self._settings.shard.index).run(address, BatchStep, self._runner)


def _report(name: str, stage: BatchStage) -> BatchModelReport:
    return BatchModelReport(
        name, stage.parameter_bytes, stage.first_part, stage.end_part, dict(stage.inputs), dict(stage.outputs)
    )
