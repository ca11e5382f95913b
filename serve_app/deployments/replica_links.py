"""A replica's side of the call link: takes the calls of Gateways, answers each by the token link, tells its state.

Beside Serve, because a Serve call costs several milliseconds of CPU, more than a small model's whole answer.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from serve_app.errors import InternalError, RayshardError, forget_frames
from serve_app.freed_memory import IdleMemory
from serve_app.observability import fault_text
from serve_app.tracing.tracing import follow
from serve_app.types.links import ErrorReply, LinkAddress
from serve_app.types.models import CopyState, ModelVersion
from serve_app.wire.links import CallReceiver, Senders
from serve_app.wire.messages import (
    PROTOCOL_VERSION,
    AccountMessage,
    Call,
    CancelMessage,
    ErrorMessage,
    RegisterMessage,
    Reply,
    StateMessage,
    ToReplica,
)

logger = logging.getLogger(__name__)

STATE_INTERVAL_S = 0.5
_REGISTRATION_S = 30.0  # a Gateway that has not registered again for that long is forgotten

Answer = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class ReplicaIdentity:
    """Which replica this is, and where."""

    replica_id: str
    application: str
    deployment: str
    node: str  # address
    version: ModelVersion | None = None  # of the model that it generates with


class ReplicaLinks:
    """The links of one replica to all Gateways: calls come in, replies and states go out.

    answer: runs one call; cancelled when its caller gives it up. state: how this replica is at the moment. What is
    sent by `senders` before a call's reply arrives before it.
    """

    def __init__(
        self, identity: ReplicaIdentity, senders: Senders, answer: Answer, state: Callable[[], CopyState]
    ) -> None:
        self._senders = senders
        self._identity = identity
        self._state = state
        self._receiver = CallReceiver(identity.node)
        self._calls = CallServer(self._receiver, senders, answer, self.register)
        self._gateways: dict[str, tuple[float, LinkAddress]] = {}  # by server key: when registered
        self._tasks: list[asyncio.Task[None]] = []
        self._is_draining = False
        self._idle_memory = IdleMemory()
        self._is_closed = False

    def start(self) -> None:
        """Take calls, and tell the state twice a second."""
        self._tasks = [asyncio.create_task(work) for work in (self._calls.run(), self._report_state())]

    def register(self, gateway: LinkAddress) -> None:
        """Tell a Gateway this replica's state from now on."""
        if gateway.node != self._receiver.address.node:
            self._receiver.listen_wide()
        self._gateways[gateway.server_key] = (time.monotonic(), gateway)
        self._send_state(gateway, self.state())

    def tell_state(self) -> None:
        """Tell all Gateways; one that is silent and has no calls here is forgotten."""
        now_s = time.monotonic()
        in_use = self._calls.keys_in_use
        state = self.state()
        for key, (registered_s, gateway) in list(self._gateways.items()):
            if now_s - registered_s > _REGISTRATION_S and key not in in_use:
                del self._gateways[key]
                self._senders.forget(gateway)
            else:
                self._send_state(gateway, state)

    def state(self) -> CopyState:
        """As Gateways are told it."""
        state = self._state()
        shown = "draining" if self._is_draining and state.state == "ready" else state.state
        return replace(state, state=shown, counts=replace(state.counts, num_token_bytes=self._senders.num_sent_bytes))

    def check(self) -> None:
        """Raises InternalError when this replica does not hear or tell any more."""
        if any(task.done() for task in self._tasks):
            raise InternalError("a task of the replica's links has ended; see the log")

    async def drain(self) -> None:
        """Ask for no more calls; returns when those at hand have ended."""
        self._is_draining = True
        self.tell_state()
        await self._calls.wait_until_idle()

    def close(self) -> None:
        """End the calls that still run, tell all Gateways that it is gone, close the links. May be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        self._calls.close()
        gone = replace(self._state(), state="gone")
        for _registered_s, gateway in self._gateways.values():
            self._send_state(gateway, gone)
        self._receiver.close()
        self._senders.close(linger_ms=200)

    def _send_state(self, gateway: LinkAddress, state: CopyState) -> None:
        own = self._identity
        calls = self._receiver.address
        message = StateMessage(PROTOCOL_VERSION, 0, own.application, state, own.deployment, calls, own.version)
        self._senders.send(gateway, message)

    async def _report_state(self) -> None:
        while True:
            await asyncio.sleep(STATE_INTERVAL_S)
            self.tell_state()
            await self._idle_memory.look(is_idle=self._calls.is_idle)


class CallServer:
    """Runs each call as a task of its own; a cancelled call's task is cancelled."""

    def __init__(
        self, receiver: CallReceiver, senders: Senders, answer: Answer, register: Callable[[LinkAddress], None]
    ) -> None:
        """register: told who is still there."""
        self._register = register
        self._receiver = receiver
        self._senders = senders
        self._answer = answer
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}  # by caller's key and number
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def keys_in_use(self) -> set[str]:
        """Server keys of the Gateways that wait for an answer."""
        return {key for key, _number in self._tasks}

    async def run(self) -> None:
        """Take calls until cancelled."""
        await self._receiver.deliver(self._take)

    @property
    def is_idle(self) -> bool:
        """Whether no call runs."""
        return self._idle.is_set()

    async def wait_until_idle(self) -> None:
        """Return when no call runs."""
        await self._idle.wait()

    def close(self) -> None:
        """Give up the calls that still run."""
        for task in self._tasks.values():
            task.cancel()

    def _take(self, message: ToReplica) -> None:
        if isinstance(message, RegisterMessage):
            self._register(message.reply_to)
            return
        key = (message.reply_to.server_key, message.stream)
        if isinstance(message, CancelMessage):
            task = self._tasks.get(key)
            if task is not None:
                task.cancel()
            return
        task = asyncio.create_task(self._run_call(message))
        self._tasks[key] = task
        self._idle.clear()
        task.add_done_callback(partial(self._forget, key))

    def _forget(self, key: tuple[str, int], _task: "asyncio.Task[None]") -> None:
        self._tasks.pop(key, None)
        if not self._tasks:
            self._idle.set()

    async def _run_call(self, message: Call) -> None:
        if not isinstance(message, AccountMessage) and message.request.trace:
            follow(message.request.trace)
        reply: Reply
        try:
            reply = await self._answer(message)
        except RayshardError as error:
            told = ErrorReply(type(error).__name__, error.message, error.field, error.retry_after_s)
            reply = ErrorMessage(PROTOCOL_VERSION, 0, message.stream, told)
            forget_frames(error)
        except asyncio.CancelledError as error:
            forget_frames(error)
            raise
        except Exception as error:  # what it says may quote the request
            logger.error("call failed kind=%s error=%s", type(message).__name__, fault_text(error))
            told = ErrorReply(InternalError.__name__, f"the request failed: {type(error).__name__}")
            reply = ErrorMessage(PROTOCOL_VERSION, 0, message.stream, told)
            forget_frames(error)
        if not self._senders.send(message.reply_to, reply):
            logger.error("reply cannot be sent node=%s", message.reply_to.node)
