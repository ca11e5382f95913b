"""The life of one shard in its process: meet the others, load, make room for the cache, run steps."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from serve_app.engine.kv_cache import kv_block_bytes
from serve_app.engine.loader import LoadedStage, load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.errors import InternalError
from serve_app.parallel.communicator import (
    Communicator,
    GroupCommunicator,
    LoneCommunicator,
    Store,
    connect_store,
    open_store,
)
from serve_app.types import EngineLimits, Rendezvous, ShardReport, ShardSettings
from serve_app.wire.links import ControlAddress, ControlClient

logger = logging.getLogger(__name__)

HEARTBEAT_INTERVAL_S = 0.5


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
        self._num_steps_done = 0

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
            Path(settings.source_dir), settings.dtype, settings.shard, self._communicator, self._device
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
        client = ControlClient(address, self._settings.shard.index)
        stopped = threading.Event()
        beat = threading.Thread(target=self._beat, args=(client.heartbeat_sender(), stopped), daemon=True)
        try:
            beat.start()
            client.send_hello()
            next_step_id = 0
            while (step := client.receive()) is not None:
                if step.step_id != next_step_id:
                    raise InternalError(f"step {step.step_id} came where step {next_step_id} was due: one was lost")
                next_step_id = step.step_id + 1
                output = self._runner.run(step)
                if output is not None:
                    client.send_output(output)
                self._num_steps_done += 1
        finally:
            stopped.set()
            beat.join()
            client.close()

    def _beat(self, send: Callable[[int], None], stopped: threading.Event) -> None:
        while not stopped.wait(HEARTBEAT_INTERVAL_S):
            send(self._num_steps_done)

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
