"""All shards of one model copy, started in the placement group of its Router replica."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable
from typing import Any

from serve_app.deployments.copy_work import CopyWork, Settings
from serve_app.deployments.node_seats import seat_shards, straddling_stages
from serve_app.deployments.shard import ShardActor
from serve_app.deployments.shard_actors import ShardProcess
from serve_app.deployments.standby_shards import ShardProcesses
from serve_app.errors import UnavailableError
from serve_app.planning.reservations import bundle_of
from serve_app.types.shards import (
    LEAVE_S,
    EngineLimits,
    Rendezvous,
    ShardReport,
    ShardSpec,
    StartTimes,
)
from serve_app.wire.control_link import ControlAddress
from serve_app.wire.links import LOOPBACK

logger = logging.getLogger(__name__)


class RayShardGroups:
    """Makes the groups of one Router, which share its placement group and the processes that wait there."""

    def __init__(self, work: CopyWork, own_node: str, shard_actor: Any = ShardActor) -> None:
        device, parallel = work.config.device, work.config.parallel
        self._own_node = own_node
        self._processes = ShardProcesses(
            lambda place: ShardProcess(shard_actor, device, place, bundle_of(place, parallel), own_node),
            lambda place: bundle_of(place, parallel),
            work.engine_kind,
            len(work.shards),
            work.config.standby_shards,
        )

    def __call__(self, work: CopyWork) -> "RayShardGroup":
        """A group that has not been started."""
        return RayShardGroup(work, self._own_node, self._processes)


class RayShardGroup:
    """ShardGroup of actors."""

    def __init__(self, work: CopyWork, own_node: str, processes: ShardProcesses[ShardProcess]) -> None:
        self._work = work
        self._config = work.config
        self._own_node = own_node
        self._processes = processes
        self._shards = work.shards
        self._members: dict[int, ShardProcess] = {}  # by shard
        self.host = LOOPBACK  # where the Router's control link listens; set by start
        self.nodes: list[str] = []  # of the shards
        self.reports: list[ShardReport] = []
        self.times = StartTimes()

    async def start(self) -> None:
        """See ShardGroup."""
        timeouts = self._config.timeouts
        try:
            async with asyncio.timeout(timeouts.load_s):
                await self._load()
        except TimeoutError as error:
            self.kill()
            raise UnavailableError(f"the model was not loaded within timeouts.load_s={timeouts.load_s}") from error
        except BaseException:
            self.kill()
            raise

    async def allocate(self, limits: EngineLimits) -> None:
        """Make the KV caches of all shards."""
        await self._all("allocate", limits)

    async def run(self, address: ControlAddress) -> None:
        """Let all shards run; returns when all have been stopped, raises as soon as one is lost."""
        runs = [member.run(address) for member in self._members.values()]
        done, _running = await asyncio.wait(runs, return_when=asyncio.FIRST_EXCEPTION)  # cancelled, they go on
        for run in done:
            run.result()

    async def renew(self, suspects: frozenset[int]) -> bool:
        """See ShardGroup."""
        try:
            for index in suspects:
                self._processes.end(self._members.pop(index))
            leaving = {index: asyncio.ensure_future(member.leave()) for index, member in self._members.items()}
            if leaving:
                await asyncio.wait(leaving.values(), timeout=LEAVE_S)
            for index, left in leaving.items():
                if not left.done() or left.exception() is not None:
                    left.cancel()
                    self._processes.end(self._members.pop(index))
        except BaseException:
            self.kill()
            raise
        return bool(self._members)

    def stand_by(self) -> None:
        """See ShardGroup."""
        self._processes.stand_by()

    def kill(self) -> None:
        """End all actors at once."""
        members, self._members = list(self._members.values()), {}
        for member in members:
            self._processes.end(member)

    async def _load(self) -> None:
        began_s = time.monotonic()
        new = [index for index in range(len(self._shards)) if index not in self._members]
        for index in new:
            self._members[index] = await self._processes.take(index, self._place_beside(index))
        await self._seat(are_all_new=len(new) == len(self._shards))
        members, nodes = [self._members[index] for index in range(len(self._shards))], self.nodes
        is_one_node = all(node == self._own_node for node in nodes)
        hosts = [LOOPBACK if is_one_node else node for node in nodes]
        self.host = LOOPBACK if is_one_node else self._own_node
        await _first_failure(
            [
                member.actor.create.remote(
                    self._settings(self._shards[index], nodes.count(nodes[index])), self._work.sources, hosts[index]
                )
                if index in new
                else member.actor.move.remote(hosts[index])
                for index, member in enumerate(members)
            ]
        )
        processes_s = time.monotonic() - began_s
        rendezvous = None
        if len(self._shards) > 1:
            timeouts = self._config.timeouts
            port = await members[0].actor.open_store.remote(timeouts.rendezvous_s)
            rendezvous = Rendezvous(hosts[0], port, timeouts.rendezvous_s, timeouts.collective_s)
        self.reports = await self._all("load", rendezvous)
        self.times = StartTimes.of(len(members) - len(new), processes_s, self.reports)
        for index in new:
            self._log(self._shards[index], nodes[index], self.reports[index])

    def _place_beside(self, index: int) -> int:
        """Where another rank of the shard's stage is; the shard's own place where there is none."""
        tensor = self._config.parallel.tensor
        first = index - index % tensor
        ranks = (self._members[one].place for one in range(first, first + tensor) if one in self._members)
        return next(ranks, 1 + index)

    async def _seat(self, *, are_all_new: bool) -> None:
        """Learn the nodes of the processes, and which of them become which shard; those that hold one keep it."""
        members = [self._members[index] for index in range(len(self._shards))]
        nodes = [location.node for location in await _first_failure([member.locate() for member in members])]
        tensor = self._config.parallel.tensor
        if are_all_new and self._config.parallel.accelerator_types is None:  # else each place is its shard's
            seats = seat_shards(nodes, tensor)
            self._members = {index: members[seat] for index, seat in enumerate(seats)}
            nodes = [nodes[seat] for seat in seats]
        self.nodes = nodes
        for stage in straddling_stages(nodes, tensor):
            on = ", ".join(dict.fromkeys(nodes[stage * tensor : (stage + 1) * tensor]))
            logger.warning(
                "tensor group straddles nodes model=%s stage=%d nodes=%s: its sums cross the network in every layer; "
                "lower parallel.tensor to what one node has room for, and raise parallel.pipeline",
                self._work.name,
                stage,
                on,
            )

    def _log(self, shard: ShardSpec, node: str, report: ShardReport) -> None:
        logger.info(
            "shard loaded model=%s stage=%d rank=%d layers=%d-%d node=%s bytes=%d num_blocks=%d load_s=%.1f "
            "linear_kernel=%s attention=%s compiled=%s",
            self._work.name,
            shard.stage,
            shard.rank,
            shard.first_layer,
            shard.end_layer - 1,
            node,
            report.parameter_bytes,
            report.num_blocks,
            report.load_s,
            report.linear_kernel or "none",
            report.attention or "none",
            report.compiled or "none",
        )

    async def _all(self, method: str, *args: object) -> list[Any]:
        members = [self._members[index] for index in range(len(self._shards))]
        return await _first_failure([getattr(member.actor, method).remote(*args) for member in members])

    def _settings(self, shard: ShardSpec, num_on_node: int) -> Settings:
        num_threads = self._config.device.cpu_threads or max(1, len(os.sched_getaffinity(0)) // num_on_node)
        return self._work.settings(shard, num_threads)


async def _first_failure(calls: list[Awaitable[Any]]) -> list[Any]:
    """The results of all calls; the first failure is raised at once, without waiting for the others."""
    return list(await asyncio.gather(*calls))
