"""All shards of one model copy, started in the placement group of its Router replica."""

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import sys
from collections.abc import Awaitable, Mapping
from typing import Any

import ray
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from serve_app.config.environment import read_environment
from serve_app.deployments.copy_work import CopyWork, Settings
from serve_app.deployments.shard import ShardActor
from serve_app.errors import UnavailableError
from serve_app.types.shards import (
    EngineLimits,
    Rendezvous,
    ShardLocation,
    ShardReport,
    ShardSpec,
)
from serve_app.wire.links import LOOPBACK, ControlAddress

logger = logging.getLogger(__name__)


class RayShardGroup:
    """ShardGroup of actors in the Router's placement group, whose bundle 0 is its own."""

    def __init__(self, work: CopyWork, own_node: str, shard_actor: Any = ShardActor) -> None:
        self._work = work
        self._config = work.config
        self._own_node = own_node
        self._shard_actor = shard_actor
        self._shards = work.shards
        self._actors: list[Any] = []
        self._process_handles: list[int] = []  # of the shards on this node
        self.host = LOOPBACK  # where the Router's control link listens; set by start
        self.reports: list[ShardReport] = []

    async def start(self) -> None:
        """Start the actors and load the model; when one fails or dies, the rest are ended and the error is raised."""
        timeouts = self._config.timeouts
        try:
            async with asyncio.timeout(timeouts.load_s):
                self._actors = [self._start_actor(index) for index in range(len(self._shards))]
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
        await self._all("run", address)

    def kill(self) -> None:
        """End all actors at once."""
        for handle in self._process_handles:  # Ray first asks the process itself, for seconds if it is stopped
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        self._process_handles = []
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    async def _load(self) -> None:
        locations: list[ShardLocation] = await self._all("location")
        nodes = [location.node for location in locations]
        for location in locations:
            if location.node == self._own_node:
                self._process_handles.append(os.pidfd_open(location.pid))
        is_one_node = all(node == self._own_node for node in nodes)
        hosts = [LOOPBACK if is_one_node else node for node in nodes]
        self.host = LOOPBACK if is_one_node else self._own_node
        await _first_failure(
            [
                actor.create.remote(self._settings(shard, nodes.count(node)), self._work.sources, host)
                for actor, shard, host, node in zip(self._actors, self._shards, hosts, nodes, strict=True)
            ]
        )
        rendezvous = None
        if len(self._shards) > 1:
            timeouts = self._config.timeouts
            port = await self._actors[0].open_store.remote(timeouts.rendezvous_s)
            rendezvous = Rendezvous(hosts[0], port, timeouts.rendezvous_s, timeouts.collective_s)
        self.reports = await self._all("load", rendezvous)
        for shard, node, report in zip(self._shards, nodes, self.reports, strict=True):
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
        return await _first_failure([getattr(actor, method).remote(*args) for actor in self._actors])

    def _start_actor(self, index: int) -> Any:
        device = self._config.device
        group = get_current_placement_group()
        assert group is not None, "a Router replica has a placement group"
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=1 + index)
        return self._shard_actor.options(
            num_cpus=device.cpus_per_shard,
            num_gpus=device.gpus_per_shard if device.type == "cuda" else 0,
            scheduling_strategy=strategy,
            max_restarts=0,
            runtime_env=forked_environment(
                read_environment().shard_server, device.type, ray.get_runtime_context().runtime_env
            ),
        ).remote()

    def _settings(self, shard: ShardSpec, num_on_node: int) -> Settings:
        num_threads = self._config.device.cpu_threads or max(1, len(os.sched_getaffinity(0)) // num_on_node)
        return self._work.settings(shard, num_threads)


def forked_environment(
    server: str | None, device_type: str, own_environment: Mapping[str, Any]
) -> dict[str, str] | None:
    """The runtime_env of a shard that the server at this socket forks; None: Ray starts it as it starts others.

    Not for CUDA, which a forked process cannot use once the server has looked for a device, nor where the application
    brings an environment of its own.
    """
    if server is None or device_type != "cpu" or own_environment:
        return None
    return {"py_executable": shlex.join([sys.executable, "-m", "serve_app.deployments.shard_process", server])}


async def _first_failure(calls: list[Awaitable[Any]]) -> list[Any]:
    """The results of all calls; the first failure is raised at once, without waiting for the others."""
    return list(await asyncio.gather(*calls))
