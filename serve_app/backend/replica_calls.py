"""Calls of a Gateway to the replicas of one deployment, over the call link: the least busy one is taken, and when it
falls silent the call goes to another. What is called this way gives the same answer however often it is run."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.errors import InternalError, QueueFullError, RayshardError, UnavailableError, error_of_kind
from serve_app.types.links import LinkAddress
from serve_app.wire.links import Senders
from serve_app.wire.messages import PROTOCOL_VERSION, Call, CancelMessage, ErrorMessage, Reply

FRESH_S = 3.0  # a replica that has said nothing for so long counts as gone
_MAX_ATTEMPTS = 3
_DEFAULT_WAIT_S = 60.0

MakeCall = Callable[[int, LinkAddress], Call]


@dataclass(slots=True, eq=False)
class _Replica:
    replica_id: str
    address: LinkAddress
    told_s: float
    is_ready: bool
    num_calls: int = 0

    def is_alive(self, now_s: float) -> bool:
        return now_s - self.told_s < FRESH_S


@dataclass(slots=True, eq=False)
class _OpenCall:
    replica: _Replica
    reply: asyncio.Future[Reply]


class _ReplicaLostError(Exception):
    """The replica that had the call is gone."""


class ReplicaCalls:
    """The calls to one deployment's replicas."""

    def __init__(
        self, senders: Senders, own_address: Callable[[], LinkAddress], next_number: Callable[[], int]
    ) -> None:
        self._senders = senders
        self._own_address = own_address
        self._next_number = next_number
        self._replicas: dict[str, _Replica] = {}
        self._open: dict[int, _OpenCall] = {}
        self._changed = asyncio.Event()
        self.num_calls = 0  # under way, waiting ones included
        self.peak_calls = 0  # most since it was last taken
        self.holds: set[asyncio.Task[None]] = set()  # Serve calls that stand for them

    @property
    def num_ready(self) -> int:
        """Replicas that take calls now."""
        now_s = time.monotonic()
        return sum(replica.is_ready and replica.is_alive(now_s) for replica in self._replicas.values())

    def see(self, replica_id: str, address: LinkAddress | None, *, is_ready: bool, is_gone: bool) -> None:
        """A replica has told its state."""
        if address is None:
            return
        if is_gone:
            self._drop(replica_id)
            return
        known = self._replicas.get(replica_id)
        if known is None or known.address.server_key != address.server_key:
            known = self._replicas[replica_id] = _Replica(replica_id, address, 0.0, False)
        known.address, known.told_s = address, time.monotonic()
        if is_ready and not known.is_ready:
            self._changed.set()
        known.is_ready = is_ready

    def sweep(self) -> None:
        """Give up replicas that have fallen silent; their calls go to others."""
        now_s = time.monotonic()
        for replica in list(self._replicas.values()):
            if not replica.is_alive(now_s):
                self._drop(replica.replica_id)

    def take_reply(self, reply: Reply) -> bool:
        """Hand a reply to who waits for it; False when it is not a call of this deployment."""
        call = self._open.get(reply.stream)
        if call is None:
            return False
        if not call.reply.done():
            call.reply.set_result(reply)
        return True

    def take_peak(self) -> int:
        """The most calls that were under way at once since the last time."""
        peak, self.peak_calls = self.peak_calls, self.num_calls
        return peak

    async def call(self, make: MakeCall, wait_s: float | None) -> Reply:
        """The reply to a call. Raises a RayshardError: the replica's own, or UnavailableError when none takes it."""
        self.num_calls += 1
        self.peak_calls = max(self.peak_calls, self.num_calls)
        try:
            for _attempt in range(_MAX_ATTEMPTS):
                with contextlib.suppress(_ReplicaLostError):
                    return await self._call_once(make, _DEFAULT_WAIT_S if wait_s is None else wait_s)
        finally:
            self.num_calls -= 1
        raise UnavailableError(f"{_MAX_ATTEMPTS} replicas have died while they ran the request", retry_after_s=1.0)

    async def _call_once(self, make: MakeCall, wait_s: float) -> Reply:
        replica = self._least_busy() or await self._wait_for_one(wait_s)
        number = self._next_number()
        call = self._open[number] = _OpenCall(replica, asyncio.get_running_loop().create_future())
        replica.num_calls += 1
        is_answered = False
        try:
            if not self._senders.send(replica.address, make(number, self._own_address())):
                raise QueueFullError("too much is on its way to the model; try again later", retry_after_s=1.0)
            reply = await call.reply
            is_answered = True
        finally:
            del self._open[number]
            replica.num_calls -= 1
            if not is_answered and (call.reply.cancelled() or not call.reply.done()):
                self._cancel(replica, number)
        if isinstance(reply, ErrorMessage):
            told = reply.error
            raise error_of_kind(told.error, told.message, told.field, told.retry_after_s)
        return reply

    def _cancel(self, replica: _Replica, number: int) -> None:
        self._senders.send(replica.address, CancelMessage(PROTOCOL_VERSION, 0, number, self._own_address()))

    def _least_busy(self) -> _Replica | None:
        now_s = time.monotonic()
        ready = [replica for replica in self._replicas.values() if replica.is_ready and replica.is_alive(now_s)]
        return min(ready, key=lambda replica: replica.num_calls, default=None)

    async def _wait_for_one(self, wait_s: float) -> _Replica:
        """A replica that can take the call; one that is being rebuilt holds it in its queue when there is no other."""
        try:
            async with asyncio.timeout(wait_s):
                while (replica := self._least_busy()) is None:
                    self._changed.clear()
                    await self._changed.wait()
                return replica
        except TimeoutError as error:
            raise UnavailableError(
                f"no copy of the model was ready within {wait_s:g} s; try again", retry_after_s=1.0
            ) from error

    def _drop(self, replica_id: str) -> None:
        replica = self._replicas.pop(replica_id, None)
        if replica is None:
            return
        self._senders.forget(replica.address)
        for call in list(self._open.values()):
            if call.replica is replica and not call.reply.done():
                call.reply.set_exception(_ReplicaLostError())


def reply_error(reply: Reply) -> RayshardError:
    """For a reply of another kind than the call's: a fault of ours."""
    return InternalError(f"a {type(reply).__name__} came where another reply was due")
