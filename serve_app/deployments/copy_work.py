"""What a model copy runs on its shards, and what its shards are to it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from serve_app.config.model import ModelConfig
from serve_app.deployments.step_loop import StepLoop, StepScheduler
from serve_app.deployments.step_traces import StepTraces
from serve_app.metrics.families import QUEUE
from serve_app.metrics.times import Times
from serve_app.scheduling.grammar_waits import GrammarWaits
from serve_app.types.generation import LAST_PRIORITY
from serve_app.types.models import CopyCounts, ModelSource, WaitsFor
from serve_app.types.shards import (
    BatchShardSettings,
    EngineKind,
    EngineLimits,
    ShardReport,
    ShardSettings,
    ShardSpec,
    StartTimes,
)
from serve_app.wire.control_link import ControlAddress

Settings = ShardSettings | BatchShardSettings
WaitingT = TypeVar("WaitingT")


@dataclass(frozen=True, slots=True)
class Load:
    """How much a copy holds at the moment."""

    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    num_prompt_tokens: int = 0  # of all requests since the shards were started
    num_cached_tokens: int = 0  # of those, found in the cache
    waits_for: WaitsFor = ""


@dataclass(frozen=True, slots=True)
class Signals:
    """What the number of copies follows."""

    queue_delay_s: float = 0.0  # of what waits longest so far, or of one behind all that waits, whichever is more
    num_waiting: int = 0
    num_step_tokens: int = 0  # that steps have computed since the scheduler was made
    slot_usage: float = 0.0  # share of max_num_seqs that runs; 0 where steps, not sequences, are what there is
    kv_usage: float = 0.0  # share of the KV cache that sequences hold


class QueueTimes(Generic[WaitingT]):
    """How long what was queued has waited for its first step; since the replica started."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.times = Times(QUEUE.bounds_s)
        self._clock = clock
        self._arrived_s: dict[WaitingT, float] = {}
        self._untimed: set[WaitingT] = set()

    def add(self, *waiting: WaitingT, priority: int = 0) -> None:
        """It has come. Of the last priority: it waits on purpose, and how long is not counted."""
        self._arrived_s.update(dict.fromkeys(waiting, self._clock()))
        if priority == LAST_PRIORITY:
            self._untimed.update(waiting)

    @property
    def oldest_s(self) -> float:
        """How long what came first has waited; 0 when nothing waits."""
        first_s = next(iter(self._arrived_s.values()), None)
        return 0.0 if first_s is None else self._clock() - first_s

    def start(self, waiting: WaitingT) -> None:
        """It is in a step."""
        arrived_s = self._arrived_s.pop(waiting, None)
        if arrived_s is not None and waiting not in self._untimed:
            self.times.add(self._clock() - arrived_s)
        self._untimed.discard(waiting)

    def forget(self, *waiting: WaitingT) -> None:
        """It has ended; what never started is not counted."""
        for one in waiting:
            self._arrived_s.pop(one, None)
            self._untimed.discard(one)


class CopyWork(Protocol):
    """One kind of work: generation step after step, or batches that are done after one step."""

    config: ModelConfig  # device, parallel, standby_shards and timeouts count
    name: str  # for the log
    engine_kind: EngineKind
    shards: list[ShardSpec]
    sources: list[ModelSource]  # what a shard's node must have
    traces: StepTraces | None  # None: nobody traces

    def settings(self, shard: ShardSpec, num_threads: int) -> Settings:
        """How one shard is to be made."""
        ...

    def limits(self, reports: Sequence[ShardReport]) -> EngineLimits | None:
        """Sizes of the KV caches; None where there are none. Raises ConfigError."""
        ...

    def scheduler(self, reports: Sequence[ShardReport], limits: EngineLimits | None) -> StepScheduler:
        """The scheduler of a new epoch."""
        ...

    async def warm_up(self, loop: StepLoop) -> None:
        """Run something small through the shards of a new epoch. Raises ConfigError when the model is unfit."""
        ...

    def take(self, results: Any) -> None:
        """What its scheduler's `update` has given."""
        ...

    def lose_shards(self) -> None:
        """The epoch is over."""
        ...

    @property
    def grammars(self) -> GrammarWaits | None:
        """Of the scheduler of this epoch; None where there are none."""
        ...

    def load(self) -> Load:
        """How much is held."""
        ...

    def signals(self) -> Signals:
        """What the number of copies follows."""
        ...

    def counts(self) -> CopyCounts:
        """Pre-emptions and times in the queue, over all epochs; the rest is not its own to count."""
        ...


class ShardGroup(Protocol):
    """The shards of one epoch of a model copy, and of the next as long as some of them stay."""

    host: str  # where the Router's control link must listen; known when started
    reports: list[ShardReport]  # by shard; known when started
    times: StartTimes  # known when started

    async def start(self) -> None:
        """Start the shards that are missing and load the model.

        When one fails or dies, the rest are ended and the error is raised.
        """
        ...

    async def allocate(self, limits: EngineLimits) -> None:
        """Make the KV caches of all shards."""
        ...

    async def run(self, address: ControlAddress) -> None:
        """Let all shards run; returns when all have been stopped, raises as soon as one is lost."""
        ...

    async def renew(self, suspects: frozenset[int]) -> bool:
        """End these shards and those that are lost; whether others stay, with their tensors, for the next `start`.

        Called when `run` has raised and the shards have been told to stop. What has not left its group after LEAVE_S is
        ended too.
        """
        ...

    def stand_by(self) -> None:
        """The copy is ready: start the processes that are to wait for the loss of a shard, if any, and return."""
        ...

    def kill(self) -> None:
        """End all shards at once. May be called more than once."""
        ...


GroupMaker = Callable[[CopyWork], ShardGroup]
