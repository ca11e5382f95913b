"""Shards of a model copy in threads of this process: a ShardGroup whose every epoch a test can end as it likes."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import zmq

from serve_app.deployments.copy_work import CopyWork
from serve_app.errors import ShardLostError
from serve_app.preprocessing.arrays import to_array, to_tensor_data
from serve_app.types.shards import BatchModelReport, EngineLimits, ShardReport, StartTimes
from serve_app.types.steps import BatchStep, BatchStepOutput
from serve_app.wire.control_link import ControlAddress, ControlClient
from serve_app.wire.links import LOOPBACK
from tests.fakes_engine import BEAT_S, CacheOracle, FakeModel, FakeShard, SilentLoop


class FakeGroup:
    """One epoch: FakeShards over the real control link."""

    host = LOOPBACK

    def __init__(self, work: CopyWork, model: FakeModel, num_blocks: int, failure: Exception | None) -> None:
        self.reports = [ShardReport(0, num_blocks, 0.0) for _ in work.shards]
        self.shards: list[FakeShard] = []
        self.is_killed = False
        self.num_starts = 0
        self.num_ready = 0
        self.is_kept = False  # what `renew` gives
        self.restart_failure: Exception | None = None  # of a start after `renew`
        self.times = StartTimes()
        self.suspects: frozenset[int] | None = None  # that `renew` was told
        self._model = model
        self._failure = failure
        self._limits: EngineLimits | None = None
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Raise what the test wants."""
        self.num_starts += 1
        failure = self._failure if self.num_starts == 1 else self.restart_failure
        if failure is not None:
            raise failure

    async def allocate(self, limits: EngineLimits) -> None:
        """Take the sizes."""
        self._limits = limits

    async def run(self, address: ControlAddress) -> None:
        """Run until `die`, or until the shards are killed."""
        assert self._limits is not None
        num_shards = len(self.reports)
        for index in range(num_shards):
            shard = FakeShard(address, index, num_shards, CacheOracle(self._limits, self._model))
            self.shards.append(shard)
            shard.start()
        await self._lost

    async def renew(self, suspects: frozenset[int]) -> bool:
        """Let the shards end, as they have been told to."""
        self.suspects = suspects
        for shard in self.shards:
            await asyncio.to_thread(shard.end)
        self.shards = []
        self._lost = asyncio.get_running_loop().create_future()
        return self.is_kept

    def stand_by(self) -> None:
        """The copy is ready."""
        self.num_ready += 1

    def kill(self) -> None:
        """End the threads."""
        self.is_killed = True
        for shard in self.shards:
            shard.kill()

    def die(self) -> None:
        """A shard's process has ended."""
        if not self._lost.done():
            self._lost.set_exception(ShardLostError("a shard's process has ended"))


class EchoGroup(FakeGroup):
    """One shard of a batch model that gives each entry's number of tokens, and 1 for the second class."""

    def __init__(self, work: CopyWork, report: BatchModelReport) -> None:
        super().__init__(work, FakeModel(), 0, None)
        self.reports = [ShardReport(0, 0, 0.0, [report])]
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.num_steps = 0
        self._client: ControlClient | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    async def run(self, address: ControlAddress) -> None:
        """Run steps in a thread until `die`."""
        self._client = ControlClient(address, 0)
        self._thread.start()
        await self._lost

    async def renew(self, suspects: frozenset[int]) -> bool:
        """Let the thread end, as it has been told to."""
        self.may_answer.set()
        await asyncio.to_thread(self._thread.join, 10)
        return await super().renew(suspects)

    def kill(self) -> None:
        """End the thread."""
        self.is_killed = True
        self.may_answer.set()
        if self._client is not None and self._thread.is_alive():
            threading.Thread(target=self._client.interrupt, daemon=True).start()
            self._thread.join(timeout=10)

    def run_step(self, step: BatchStep) -> BatchStepOutput:
        """The sizes of a step's entries."""
        self.num_steps += 1
        self.may_answer.wait()
        sizes = to_array(step.inputs["lengths"]).astype(np.float32)
        logits = np.stack([sizes, np.ones_like(sizes)], axis=1)
        return BatchStepOutput(step.step_id, {"logits": to_tensor_data(logits)})

    def _run(self) -> None:
        assert self._client is not None
        with contextlib.suppress(zmq.ContextTerminated):
            SilentLoop(self._client, BEAT_S).run(BatchStep, StepFunction(self.run_step))


@dataclass(frozen=True)
class StepFunction:
    """A StepRunner of a function."""

    function: Callable[[BatchStep], BatchStepOutput]

    def run(self, step: BatchStep) -> BatchStepOutput:
        """Call it."""
        return self.function(step)


@dataclass
class FakeGroups:
    """Makes the group of each epoch."""

    model: FakeModel = field(default_factory=FakeModel)
    num_blocks: int = 64
    failures: list[Exception] = field(default_factory=list)  # of the next starts
    made: list[FakeGroup] = field(default_factory=list)

    def __call__(self, work: CopyWork) -> FakeGroup:
        """The group of the next epoch."""
        failure = self.failures.pop(0) if self.failures else None
        self.made.append(FakeGroup(work, self.model, self.num_blocks, failure))
        return self.made[-1]
