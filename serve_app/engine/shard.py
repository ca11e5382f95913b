"""The life of one shard in its process: meet the others, load, make room for the cache, run steps."""

import time
from pathlib import Path

import torch

from serve_app.engine.kv_cache import kv_block_bytes
from serve_app.engine.loader import LoadedStage, load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.engine.shard_loop import ShardLoop
from serve_app.parallel.communicator import (
    Communicator,
    GroupCommunicator,
    LoneCommunicator,
    Store,
    connect_store,
    open_store,
)
from serve_app.types.shards import EngineLimits, Rendezvous, ShardReport, ShardSettings
from serve_app.types.steps import StepInput
from serve_app.wire.links import ControlAddress


class EngineShard:
    """One shard. Its methods are called in this order: open_store (one shard of a group), load, allocate, run."""

    def __init__(self, settings: ShardSettings, host: str) -> None:
        torch.set_num_threads(settings.num_threads)
        self._settings = settings
        self._host = host
        self._device = torch.device("cuda:0" if settings.device == "cuda" else "cpu")
        self._store: Store | None = None
        self._communicator: Communicator = LoneCommunicator()
        self._loaded: LoadedStage | None = None
        self._runner: ModelRunner | None = None

    def open_store(self, rendezvous_s: float) -> int:
        """Listen for the rest of the group; gives the port."""
        store = open_store(self._host, rendezvous_s)
        self._store = store
        return int(store.port)

    def load(self, rendezvous: Rendezvous | None) -> ShardReport:
        """Meet the group and read this shard's tensors."""
        started = time.monotonic()
        settings = self._settings
        if rendezvous is not None:
            if self._store is None:
                self._store = connect_store(rendezvous)
            self._communicator = GroupCommunicator(self._store, settings.shard, rendezvous, self._device, self._host)
        self._loaded = load_stage(
            Path(settings.source_dir),
            settings.dtype,
            settings.shard,
            self._communicator,
            self._device,
            settings.quantization,
        )
        num_blocks = self._kv_bytes() // kv_block_bytes(self._loaded.stage, settings.block_size)
        return ShardReport(self._loaded.parameter_bytes, num_blocks, time.monotonic() - started)

    def allocate(self, limits: EngineLimits) -> None:
        """Make the KV cache, of the size that all shards have room for."""
        assert self._loaded is not None
        self._runner = ModelRunner(self._loaded.stage, limits, self._communicator, self._device)

    def run(self, address: ControlAddress) -> None:
        """Run the Router's steps until it says stop. An exception here is the end of the whole group."""
        assert self._runner is not None
        ShardLoop(self._settings.shard.index).run(address, StepInput, self._runner)

    def _kv_bytes(self) -> int:
        settings = self._settings
        if settings.kv_cache_bytes is not None:
            return settings.kv_cache_bytes
        free, total = torch.cuda.mem_get_info(self._device)
        allowed = total * settings.gpu_memory_utilization - torch.cuda.memory_reserved(self._device)
        return max(0, min(int(allowed), free) - self._activation_bytes())

    def _activation_bytes(self) -> int:
        """A generous bound of what one step needs beside weights and cache, in bytes."""
        assert self._loaded is not None
        config = self._loaded.stage.config
        width = 8 * config.hidden_size + 4 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
        logits = 8 * config.vocab_size * min(self._settings.max_num_batched_tokens, 512)
        return int(self._settings.max_num_batched_tokens * width * self._loaded.stage.dtype.itemsize + logits)
