"""A replica that holds one copy of its models, whatever they are: its copy and its links. Without Ray."""

import asyncio
import time
from typing import Protocol

from serve_app.autoscaling.serve_policy import metrics_of
from serve_app.deployments.copy_work import CopyWork, GroupMaker
from serve_app.deployments.load_meter import LoadMeter
from serve_app.deployments.model_copy import RETRY_S, ModelCopy
from serve_app.deployments.replica_links import ReplicaIdentity, ReplicaLinks
from serve_app.errors import InternalError, RayshardError
from serve_app.tracing.tracing import Tracing
from serve_app.types.models import ModelDescription
from serve_app.types.plans import CopyAccount
from serve_app.wire.links import Senders
from serve_app.wire.messages import PROTOCOL_VERSION, AccountMessage, AccountReply, Call, Reply


class Calls(Protocol):
    """What a kind of model does with calls."""

    def describe(self, created_s: int) -> list[ModelDescription]:
        """The models of this replica."""
        ...

    async def answer(self, call: Call, copy: ModelCopy) -> Reply:
        """Run one call to its end; cancelled when its caller gives it up. Raises a RayshardError."""
        ...

    async def account(self, copy: ModelCopy) -> list[CopyAccount]:
        """What each model was to take and do, and what it takes and does."""
        ...

    def lose_shards(self, error: RayshardError) -> None:
        """What ran on the shards is gone."""
        ...


class ModelReplica:
    """Takes calls as long as Serve lets it live; its copy comes back by itself when a shard is lost."""

    def __init__(
        self,
        identity: ReplicaIdentity,
        work: CopyWork,
        calls: Calls,
        make_group: GroupMaker,
        senders: Senders,
        *,
        retry_s: float = RETRY_S,
        tracing: Tracing | None = None,
    ) -> None:
        """tracing: closed in the end."""
        self.created_s = int(time.time())
        self.copy = ModelCopy(work, make_group, self._lose, self._tell_state, retry_s=retry_s)
        self.links = ReplicaLinks(identity, senders, self._answer, lambda: self.copy.state(identity.replica_id))
        self._calls = calls
        self._tracing = tracing
        autoscaling = work.config.autoscaling
        self._meter = LoadMeter(None if autoscaling is None else autoscaling.capacity_tokens_per_s)
        self._supervising: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bring the first shards up; returns when calls can be taken, raises when that fails."""
        await self.copy.start()
        self._supervising = asyncio.create_task(self.copy.supervise())
        self.links.start()

    def describe(self) -> list[ModelDescription]:
        """What is served here."""
        return self._calls.describe(self.created_s)

    def load_metrics(self) -> dict[str, float]:
        """What the autoscaling policy is told of this copy; nothing while its shards are not up."""
        signals = self.copy.signals()
        return {} if signals is None else metrics_of(self._meter.read(signals, self.copy.startup_s))

    def check(self) -> None:
        """Raises InternalError when Serve should replace this replica."""
        self.links.check()
        if self._supervising is not None and self._supervising.done():
            raise InternalError("the shards could not be started again; see the replica's log")

    async def close(self) -> None:
        """Let the calls at hand end, then end the shards."""
        await self.links.drain()
        self.close_now()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def close_now(self) -> None:
        """End the calls at hand and the shards."""
        if self._supervising is not None:
            self._supervising.cancel()
        self.links.close()
        self.copy.close()

    async def _answer(self, call: Call) -> Reply:
        if isinstance(call, AccountMessage):
            return AccountReply(PROTOCOL_VERSION, 0, call.stream, await self._calls.account(self.copy))
        return await self._calls.answer(call, self.copy)

    def _lose(self, error: RayshardError) -> None:
        self._calls.lose_shards(error)
        self._tell_state()

    def _tell_state(self) -> None:
        self.links.tell_state()
