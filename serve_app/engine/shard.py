"""One shard in its process: meet the others, load, make room for the cache, run steps."""

import importlib
import time
from dataclasses import replace
from datetime import timedelta

import torch

from serve_app.engine.shard_engine import ShardEngine
from serve_app.engine.shard_loop import ShardLoop
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.parallel.group_communicator import GroupCommunicator
from serve_app.parallel.process_groups import Store, connect_store, open_store
from serve_app.types.shards import BatchShardSettings, EngineKind, EngineLimits, Rendezvous, ShardReport, ShardSettings
from serve_app.wire.control_link import ControlAddress, ControlClient

_LOADING = timedelta(days=1)  # the Router ends what takes longer than timeouts.load_s, and all shards when one fails


class EngineShard:
    """One shard. Its methods are called in this order: open_store (one shard of a group), load, allocate, run.

    When another shard is lost, `run` ends, and this one may stay: `leave`, `move`, and the same again with a new group.
    """

    def __init__(self, settings: ShardSettings | BatchShardSettings, host: str) -> None:
        torch.set_num_threads(settings.num_threads)
        self._shard = settings.shard
        self._host = host
        self._device = torch.device("cuda:0" if settings.device == "cuda" else "cpu")
        self._store: Store | None = None
        self._communicator: GroupCommunicator | None = None  # None: not met yet, or the model has one shard
        self._report: ShardReport | None = None  # None: not loaded yet
        self._engine = _engine_of(settings, self._device)

    def open_store(self, rendezvous_s: float) -> int:
        """Listen for the rest of the group; gives the port."""
        self._store = open_store(self._host, rendezvous_s)
        return int(self._store.port)

    def load(self, rendezvous: Rendezvous | None) -> ShardReport:
        """Meet the group, read this shard's tensors unless they are there, and find out how much room that leaves."""
        watch = _StopWatch()
        if rendezvous is not None:
            self._meet(rendezvous)
        meet_s, load_s = watch.lap_s(), 0.0
        if self._report is None:
            self._report = self._engine.load(self._communicator or LoneCommunicator())
            load_s = watch.lap_s()
        report = replace(self._report, meet_s=meet_s, load_s=load_s)
        if self._engine.is_measured:
            self._wait_for_group()
            watch.lap_s()
            report = replace(report, num_blocks=self._engine.measure())
            report = replace(report, measure_s=watch.lap_s())
        return report

    def leave(self) -> None:
        """Let go of a group that has lost a shard; what was computed there is gone, the tensors stay."""
        if self._communicator is not None:
            self._communicator.leave()
        self._store = None
        self._engine.forget()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # raises where nothing runs on the device any more

    def move(self, host: str) -> None:
        """The address to meet the next group on."""
        self._host = host

    def allocate(self, limits: EngineLimits) -> None:
        """Make the KV cache."""
        self._engine.allocate(limits)

    def run(self, address: ControlAddress) -> None:
        """Run the Router's steps until it says stop. An exception here is the end of the whole group."""
        is_on_gpu = self._device.type == "cuda"  # where a kernel waits for one that is gone until it is aborted
        free = self._communicator.abort if self._communicator is not None and is_on_gpu else None
        client = ControlClient(address, self._shard.index)
        self._engine.run(ShardLoop(client, free=free, memory=self._engine.memory_taken))

    def _meet(self, rendezvous: Rendezvous) -> None:
        if self._store is None:
            self._store = connect_store(rendezvous)
        if self._communicator is None:
            self._communicator = GroupCommunicator(self._store, self._shard, rendezvous, self._device, self._host)
        else:
            self._communicator.join(self._store, rendezvous, self._host)

    def _wait_for_group(self) -> None:
        """Until all shards have loaded: a collective would not wait that long for the slowest."""
        if self._store is None:
            return
        num_shards = self._shard.num_stages * self._shard.num_ranks
        self._store.set(f"loaded/{self._shard.index}", "")
        self._store.wait([f"loaded/{index}" for index in range(num_shards)], _LOADING)


class _StopWatch:
    """Tells the seconds between two looks at it."""

    def __init__(self) -> None:
        self._looked_s = time.monotonic()

    def lap_s(self) -> float:
        """Since the last look."""
        looked_s, self._looked_s = self._looked_s, time.monotonic()
        return self._looked_s - looked_s


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
