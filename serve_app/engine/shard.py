"""One shard in its process: meet the others, load, make room for the cache, run steps."""

import time
from pathlib import Path
from typing import Protocol

import torch

from serve_app.engine.batch_loader import load_batch_stage
from serve_app.engine.batch_runner import BatchRunner
from serve_app.engine.kv_cache import kv_block_bytes
from serve_app.engine.loader import LoadedStage, load_stage
from serve_app.engine.model_runner import ModelRunner
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
    ShardSettings,
)
from serve_app.types.steps import BatchStep, StepInput
from serve_app.wire.links import ControlAddress, ControlClient


class ShardEngine(Protocol):
    """What a shard computes."""

    def load(self, communicator: Communicator) -> ShardReport:
        """Read this shard's tensors; `load_s` of the report is not known yet."""
        ...

    def allocate(self, limits: EngineLimits) -> None:
        """Make the KV cache, of the size that all shards have room for; called for models that have one."""
        ...

    def run(self, loop: ShardLoop) -> None:
        """Run the loop with this engine's steps."""
        ...


class EngineShard:
    """One shard. Its methods are called in this order: open_store (one shard of a group), load, allocate, run."""

    def __init__(self, settings: ShardSettings | BatchShardSettings, host: str) -> None:
        torch.set_num_threads(settings.num_threads)
        self._shard = settings.shard
        self._host = host
        self._device = torch.device("cuda:0" if settings.device == "cuda" else "cpu")
        self._store: Store | None = None
        self._engine: ShardEngine
        if isinstance(settings, BatchShardSettings):
            self._engine = BatchEngine(settings, self._device)
        else:
            self._engine = GenerationEngine(settings, self._device)

    def open_store(self, rendezvous_s: float) -> int:
        """Listen for the rest of the group; gives the port."""
        self._store = open_store(self._host, rendezvous_s)
        return int(self._store.port)

    def load(self, rendezvous: Rendezvous | None) -> ShardReport:
        """Meet the group and read this shard's tensors."""
        started_s = time.monotonic()
        communicator: Communicator = LoneCommunicator()
        if rendezvous is not None:
            if self._store is None:
                self._store = connect_store(rendezvous)
            communicator = GroupCommunicator(self._store, self._shard, rendezvous, self._device, self._host)
        report = self._engine.load(communicator)
        return ShardReport(report.parameter_bytes, report.num_blocks, time.monotonic() - started_s, report.models)

    def allocate(self, limits: EngineLimits) -> None:
        """Make the KV cache."""
        self._engine.allocate(limits)

    def run(self, address: ControlAddress) -> None:
        """Run the Router's steps until it says stop. An exception here is the end of the whole group."""
        self._engine.run(ShardLoop(ControlClient(address, self._shard.index)))


class GenerationEngine:
    """ShardEngine of a model that generates."""

    def __init__(self, settings: ShardSettings, device: torch.device) -> None:
        self._settings = settings
        self._device = device
        self._communicator: Communicator | None = None
        self._loaded: LoadedStage | None = None
        self._runner: ModelRunner | None = None

    def load(self, communicator: Communicator) -> ShardReport:
        """See ShardEngine."""
        settings = self._settings
        self._communicator = communicator
        self._loaded = load_stage(
            Path(settings.source_dir),
            settings.dtype,
            settings.shard,
            communicator,
            self._device,
            settings.quantization,
            settings.max_model_len,
        )
        num_blocks = self._kv_bytes(self._loaded) // kv_block_bytes(self._loaded.stage, settings.block_size)
        return ShardReport(self._loaded.parameter_bytes, num_blocks, 0.0)

    def allocate(self, limits: EngineLimits) -> None:
        """See ShardEngine."""
        assert self._loaded is not None
        assert self._communicator is not None
        self._runner = ModelRunner(self._loaded.stage, limits, self._communicator, self._device)

    def run(self, loop: ShardLoop) -> None:
        """See ShardEngine."""
        assert self._runner is not None
        loop.run(StepInput, self._runner)

    def _kv_bytes(self, loaded: LoadedStage) -> int:
        settings = self._settings
        if settings.kv_cache_bytes is not None:
            return settings.kv_cache_bytes
        free, total = torch.cuda.mem_get_info(self._device)
        allowed = total * settings.gpu_memory_utilization - torch.cuda.memory_reserved(self._device)
        return max(0, min(int(allowed), free) - self._activation_bytes(loaded))

    def _activation_bytes(self, loaded: LoadedStage) -> int:
        """A generous bound of what one step needs beside weights and cache, in bytes."""
        config = loaded.stage.config
        width = 8 * config.hidden_size + 4 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
        logits = 8 * config.vocab_size * min(self._settings.max_num_batched_tokens, 512)
        return int(self._settings.max_num_batched_tokens * width * loaded.stage.dtype.itemsize + logits)


class BatchEngine:
    """ShardEngine of models that are done with an entry after one step."""

    def __init__(self, settings: BatchShardSettings, device: torch.device) -> None:
        self._settings = settings
        self._device = device
        self._runner: BatchRunner | None = None

    def load(self, communicator: Communicator) -> ShardReport:
        """See ShardEngine."""
        settings = self._settings
        stages = [load_batch_stage(model, communicator, self._device) for model in settings.models]
        self._runner = BatchRunner(stages, settings.shard, communicator, self._device)
        reports = [_report(model.name, stage) for model, stage in zip(settings.models, stages, strict=True)]
        return ShardReport(sum(stage.parameter_bytes for stage in stages), 0, 0.0, reports)

    def allocate(self, _limits: EngineLimits) -> None:
        """There is no cache to make."""

    def run(self, loop: ShardLoop) -> None:
        """See ShardEngine."""
        assert self._runner is not None
        loop.run(BatchStep, self._runner)


def _report(name: str, stage: BatchStage) -> BatchModelReport:
    return BatchModelReport(
        name, stage.parameter_bytes, stage.first_part, stage.end_part, dict(stage.inputs), dict(stage.outputs)
    )
