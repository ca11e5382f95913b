"""Shards of a model copy in threads of this process: a ShardGroup whose every epoch a test can end as it likes."""

import asyncio
from dataclasses import dataclass, field

from serve_app.deployments.copy_work import CopyWork
from serve_app.errors import ShardLostError
from serve_app.types.shards import EngineLimits, ShardReport
from serve_app.wire.links import LOOPBACK, ControlAddress
from tests.fakes_engine import CacheOracle, FakeModel, FakeShard


class FakeGroup:
    """One epoch: FakeShards over the real control link."""

    host = LOOPBACK

    def __init__(self, work: CopyWork, model: FakeModel, num_blocks: int, failure: Exception | None) -> None:
        self.reports = [ShardReport(0, num_blocks, 0.0) for _ in work.shards]
        self.shards: list[FakeShard] = []
        self.is_killed = False
        self._model = model
        self._failure = failure
        self._limits: EngineLimits | None = None
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Raise what the test wants."""
        if self._failure is not None:
            raise self._failure

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

    def kill(self) -> None:
        """End the threads."""
        self.is_killed = True
        for shard in self.shards:
            shard.kill()

    def die(self) -> None:
        """A shard's process has ended."""
        if not self._lost.done():
            self._lost.set_exception(ShardLostError("a shard's process has ended"))


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
