"""What every Router replica does, whatever its model: keeps its copy alive and tells the Gateways how it is."""

import asyncio
import time
from dataclasses import replace

from ray import serve
from ray.util import get_node_ip_address

from serve_app.deployments.call_server import STATE_INTERVAL_S, GatewayLinks
from serve_app.deployments.model_copy import ModelCopy
from serve_app.errors import InternalError
from serve_app.wire.links import CallReceiver, TokenLinks


class CopyReplica:
    """Base of the Router deployments. `_set_up` comes first in their constructors, `_start` last."""

    def _set_up(self, *, takes_calls: bool) -> None:
        context = serve.get_replica_context()
        self._replica_id = context.replica_tag
        self._node = str(get_node_ip_address())
        self._created_s = int(time.time())
        self._links = TokenLinks(self._replica_id, self._node)
        self._receiver = CallReceiver(self._node) if takes_calls else None
        self._gateways = GatewayLinks(self._links, context.app_name, "Router", self._receiver)
        self._tasks: list[asyncio.Task[None]] = []

    async def _start(self, copy: ModelCopy) -> None:
        self._copy = copy
        await copy.start()
        self._supervising = asyncio.create_task(copy.supervise())
        self._tasks = [self._supervising, asyncio.create_task(self._report_state())]

    async def check_health(self) -> None:
        """Serve replaces this replica when its shards cannot be brought up again."""
        if self._supervising.done():
            raise InternalError("the shards could not be started again; see the replica's log")

    async def hold(self, seconds: float) -> None:
        """Stay open so long: calls on the call link are not Serve's, and its autoscaling counts these instead."""
        await asyncio.sleep(seconds)

    def __del__(self) -> None:
        for task in getattr(self, "_tasks", []):
            task.cancel()
        copy = getattr(self, "_copy", None)
        if copy is not None:
            gone = replace(copy.state(self._replica_id), state="gone")
            self._gateways.send_states(copy.epoch, gone, self._keys_in_use())
            copy.close()

    def _keys_in_use(self) -> set[str]:
        """Server keys of the Gateways that have calls here."""
        raise NotImplementedError

    def _send_states(self) -> None:
        self._gateways.send_states(self._copy.epoch, self._copy.state(self._replica_id), self._keys_in_use())

    async def _report_state(self) -> None:
        while True:
            await asyncio.sleep(STATE_INTERVAL_S)
            self._send_states()
