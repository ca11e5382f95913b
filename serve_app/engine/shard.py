"""One shard in its process: meet the others, load, make room for the cache, run steps."""

import importlib
import time
from dataclasses import replace
from datetime import timedelta

import torch

from serve_app.engine.shard_engine import ShardEngine
from serve_app.engine.shard_loop import ShardLoop
from serve_app.parallel.communicator import (
    Communicator,
    GroupCommunicator,
    LoneCommunicator,
    Store,
    connect_store,
    open_store,
)
from serve_app.types.shards import BatchShardSettings, EngineKind, EngineLimits, Rendezvous, ShardReport, ShardSettings
from serve_app.wire.links import ControlAddress, ControlClient

_LOADING = timedelta(days=1)  # the Router ends what takes longer than timeouts.load_s, and all shards when one fails


class EngineShard:
    """One shard. Its methods are called in this order: open_store (one shard of a group), load, allocate, run."""

    def __init__(self, settings: ShardSettings | BatchShardSettings, host: str) -> None:
        torch.set_num_threads(settings.num_threads)
        self._shard = settings.shard
        self._host = host
        self._device = torch.device("cuda:0" if settings.device == "cuda" else "cpu")
        self._store: Store | None = None
        self._engine = _engine_of(settings, self._device)

    def open_store(self, rendezvous_s: float) -> int:
        """Listen for the rest of the group; gives the port."""
        self._store = open_store(self._host, rendezvous_s)
        return int(self._store.port)

    def load(self, rendezvous: Rendezvous | None) -> ShardReport:
        """Meet the group, read this shard's tensors, and find out how much room that leaves."""
        started_s = time.monotonic()
        communicator: Communicator = LoneCommunicator()
        if rendezvous is not None:
            if self._store is None:
                self._store = connect_store(rendezvous)
            communicator = GroupCommunicator(self._store, self._shard, rendezvous, self._device, self._host)
        report = self._engine.load(communicator)
        if self._engine.is_measured:
            self._wait_for_group()
            report = replace(report, num_blocks=self._engine.measure())
        return replace(report, load_s=time.monotonic() - started_s)

    def allocate(self, limits: EngineLimits) -> None:
        """Make the KV cache."""
        self._engine.allocate(limits)

    def run(self, address: ControlAddress) -> None:
        """Run the Router's steps until it says stop. An exception here is the end of the whole group."""
        self._engine.run(ShardLoop(ControlClient(address, self._shard.index)))

    def _wait_for_group(self) -> None:
        """Until all shards have loaded: a collective would not wait that long for the slowest."""
        if self._store is None:
            return
        num_shards = self._shard.num_stages * self._shard.num_ranks
        self._store.set(f"loaded/{self._shard.index}", "")
        self._store.wait([f"loaded/{index}" for index in range(num_shards)], _LOADING)


def import_engine(kind: EngineKind) -> None:
    """Import what a shard of that kind runs, ahead of its settings."""
    if kind != "module":
        _make_transformers_light()
    importlib.import_module(f"serve_app.engine.{'generation' if kind == 'generation' else 'batch'}_engine")


def _engine_of(settings: ShardSettings | BatchShardSettings, device: torch.device) -> ShardEngine:
    """Imported when the kind is known: transformers takes longer than torch, and a plain module needs none of it."""
    if isinstance(settings, BatchShardSettings):
        if any(model.architecture is None for model in settings.models):
            _make_transformers_light()
        from serve_app.engine.batch_engine import BatchEngine

        return BatchEngine(settings, device)
    _make_transformers_light()
    from serve_app.engine.generation_engine import GenerationEngine

    return GenerationEngine(settings, device)


def _make_transformers_light() -> None:
    from serve_app.models.light_transformers import leave_out_unused_libraries

    leave_out_unused_libraries()
