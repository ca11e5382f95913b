"""A replica's side of the call link: takes the calls of Gateway replicas, and answers each by the token link.

Beside Serve, because a Serve call costs several milliseconds of CPU, more than a small model's whole answer.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

from serve_app.errors import InternalError, RayshardError
from serve_app.types.links import ErrorReply, LinkAddress
from serve_app.types.models import CopyState
from serve_app.wire.links import CallReceiver, TokenLinks
from serve_app.wire.messages import PROTOCOL_VERSION, Call, CancelMessage, ErrorMessage, Reply

logger = logging.getLogger(__name__)

STATE_INTERVAL_S = 0.5
_REGISTRATION_S = 30.0  # a Gateway that has not registered again for so long is forgotten

Answer = Callable[[Call], Awaitable[Reply]]


class GatewayLinks:
    """The Gateway replicas that have registered with this replica, and what they are told."""

    def __init__(self, links: TokenLinks, application: str, deployment: str, calls: CallReceiver | None) -> None:
        self._links = links
        self._application = application
        self._deployment = deployment
        self._calls = calls
        self._gateways: dict[str, tuple[float, LinkAddress]] = {}  # by server key: when registered

    def register(self, gateway: LinkAddress, epoch: int, state: CopyState) -> None:
        """Tell a Gateway this replica's state from now on."""
        if self._calls is not None and gateway.node != self._calls.address.node:
            self._calls.listen_wide()
        self._gateways[gateway.server_key] = (time.monotonic(), gateway)
        self._send(gateway, epoch, state)

    def send_states(self, epoch: int, state: CopyState, keys_in_use: set[str]) -> None:
        """Tell all; those that are silent and have no calls here are forgotten."""
        now = time.monotonic()
        for key, (registered_s, gateway) in list(self._gateways.items()):
            if now - registered_s > _REGISTRATION_S and key not in keys_in_use:
                del self._gateways[key]
                self._links.forget(gateway)
            else:
                self._send(gateway, epoch, state)

    def _send(self, gateway: LinkAddress, epoch: int, state: CopyState) -> None:
        calls = self._calls.address if self._calls is not None else None
        self._links.send_state(gateway, epoch, self._application, state, self._deployment, calls)


class CallServer:
    """Runs each call as a task of its own; a cancelled call's task is cancelled."""

    def __init__(self, receiver: CallReceiver, links: TokenLinks, answer: Answer) -> None:
        self._receiver = receiver
        self._links = links
        self._answer = answer
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}  # by caller's key and number

    @property
    def keys_in_use(self) -> set[str]:
        """Server keys of the Gateways that wait for an answer."""
        return {key for key, _number in self._tasks}

    async def run(self) -> None:
        """Take calls until cancelled."""
        while True:
            message = await self._receiver.receive()
            key = (message.reply_to.server_key, message.stream)
            if isinstance(message, CancelMessage):
                task = self._tasks.get(key)
                if task is not None:
                    task.cancel()
                continue
            task = asyncio.create_task(self._run_call(message))
            self._tasks[key] = task
            task.add_done_callback(partial(self._forget, key))

    def _forget(self, key: tuple[str, int], _task: "asyncio.Task[None]") -> None:
        self._tasks.pop(key, None)

    async def _run_call(self, message: Call) -> None:
        reply: Reply
        try:
            reply = await self._answer(message)
        except RayshardError as error:
            told = ErrorReply(type(error).__name__, error.message, error.field, error.retry_after_s)
            reply = ErrorMessage(PROTOCOL_VERSION, 0, message.stream, told)
        except Exception as error:  # its message may quote the request: the kind alone is logged and told
            logger.error("call failed kind=%s error=%s", type(message).__name__, type(error).__name__)
            told = ErrorReply(InternalError.__name__, f"the request failed: {type(error).__name__}")
            reply = ErrorMessage(PROTOCOL_VERSION, 0, message.stream, told)
        if not self._links.send(message.reply_to, reply):
            logger.error("reply cannot be sent node=%s", message.reply_to.node)
