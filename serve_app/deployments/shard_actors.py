"""The actors that hold shards: how Ray is asked for one, and how it is ended."""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Awaitable, Mapping
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from serve_app.config.engine import DeviceConfig
from serve_app.config.environment import read_environment
from serve_app.errors import PeerLostError
from serve_app.types.shards import EngineKind, ShardLocation
from serve_app.wire.control_link import ControlAddress


class ShardProcess:
    """An actor in a bundle of the Router's placement group, made for a shard or waiting for one."""

    def __init__(self, shard_actor: Any, device: DeviceConfig, place: int, bundle: int, own_node: str) -> None:
        group = get_current_placement_group()
        assert group is not None, "a Router replica has a placement group"
        self.place = place
        self.actor = shard_actor.options(
            num_cpus=device.cpus_per_shard,
            num_gpus=device.gpus_per_shard if device.type == "cuda" else 0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
            max_restarts=0,
            runtime_env=forked_environment(
                read_environment().shard_server, device.type, ray.get_runtime_context().runtime_env
            ),
        ).remote()
        self._own_node = own_node
        self._handle: int | None = None  # of the process, on this node
        self._run: asyncio.Future[None] | None = None  # None: it does not run

    async def prepare(self, kind: EngineKind) -> None:
        """Import what a shard of that kind runs."""
        await self.actor.prepare.remote(kind)

    async def locate(self) -> ShardLocation:
        """Where it is; it answers when it has imported what it was to prepare."""
        location: ShardLocation = await self.actor.location.remote()
        if self._handle is None and location.node == self._own_node:
            self._handle = os.pidfd_open(location.pid)
        return location

    def run(self, address: ControlAddress) -> "asyncio.Future[None]":
        """Let the shard run; what it raises is raised as it was, not as Ray wraps it."""
        self._run = asyncio.ensure_future(_told(self.actor.run.remote(address)))
        self._run.add_done_callback(_note_end)
        return self._run

    async def leave(self) -> None:
        """Returns when a shard that is well has left its group; raises when it is lost."""
        assert self._run is not None
        with contextlib.suppress(PeerLostError):
            await self._run
        await self.actor.leave.remote()

    def kill(self) -> None:
        """End it at once: Ray first asks the process itself, for seconds if it is stopped."""
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            os.close(self._handle)
            self._handle = None
        if self._run is not None:
            self._run.cancel()
        ray.kill(self.actor)


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


async def _told(run: Awaitable[None]) -> None:
    try:
        await run
    except RayTaskError as error:
        raise error.cause from None


def _note_end(run: "asyncio.Future[None]") -> None:
    """When a shard is lost others fail as well, and nobody asks for the end of each."""
    if not run.cancelled():
        run.exception()
