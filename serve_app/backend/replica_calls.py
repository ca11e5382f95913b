"""Calls to the replicas of one deployment, over the call link.

The least busy replica is taken, or for a prompt the one that `copy_choice` says; when it dies or falls silent the call
goes to another.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from serve_app.backend.copy_choice import Choice, CopyChooser
from serve_app.backend.known_replicas import KnownReplicas, Replica
from serve_app.backend.open_calls import OpenCall, OpenCalls
from serve_app.backend.prompt_marks import RoutedPrompt
from serve_app.backend.token_stream import TokenStream
from serve_app.errors import QueueFullError, RayshardError, UnavailableError, error_of_kind
from serve_app.types.links import LinkAddress
from serve_app.types.models import CopyState, ModelVersion
from serve_app.wire.links import Senders
from serve_app.wire.messages import (
    PROTOCOL_VERSION,
    Call,
    CancelMessage,
    ErrorMessage,
    RegisterMessage,
    Reply,
)

_LAST_WORDS_MS = 1000  # that what it is told then has to leave this process
_MAX_ATTEMPTS = 3
_WAKE_S = 1800.0  # how long calls wait for the start of a copy where none is kept; their own time may be less

MakeCall = Callable[[int, LinkAddress], Call]  # of the call's number and the address that replies go to


class ReplicaLostError(Exception):
    """The replica that had the call is gone."""


class ReplicaCalls:
    """The calls to one deployment's replicas."""

    def __init__(self, senders: Senders, own_address: Callable[[], LinkAddress], open_calls: OpenCalls) -> None:
        self._senders = senders
        self._own_address = own_address
        self._open = open_calls
        self._known = KnownReplicas()
        self._replicas = self._known.by_id
        self._changed = asyncio.Event()
        self._is_asleep = False
        self.num_calls = 0  # under way, waiting ones included
        self.peak_calls = 0  # most since it was last taken
        self.num_resumes = 0  # generations that went on after a loss
        self.chooser = CopyChooser()

    @property
    def num_ready(self) -> int:
        """Replicas that take calls now."""
        return len(self._known.ready())

    @property
    def is_asleep(self) -> bool:
        """Whether Serve keeps no replica, or has just been asked for one; until one is ready, or fails to start."""
        return self._is_asleep and not self.num_ready

    def set_asleep(self, is_asleep: bool) -> None:
        """Calls that wait have as long as a start takes, whatever the queue's time is."""
        self._is_asleep = is_asleep
        self._changed.set()

    def see(self, address: LinkAddress, state: CopyState, version: ModelVersion | None = None) -> None:
        """A replica has told its state."""
        if state.state == "gone":
            if not self.is_outlived(address, state):
                self._drop(state.replica_id)
            return
        if self._known.is_another(state.replica_id, address):
            self._drop(state.replica_id)
        if not self._known.see(address, state, version):
            self.chooser.forget(state.replica_id)
        if state.state == "ready":
            self._is_asleep = False
            self._changed.set()

    def is_outlived(self, address: LinkAddress, state: CopyState) -> bool:
        """Whether a process tells that it is gone whose name another one has taken, which has been heard already."""
        return state.state == "gone" and self._known.is_another(state.replica_id, address)

    def sweep(self, late_s: float = 0.0) -> None:
        """Give up replicas that have fallen silent. late_s: how long this process itself has stood still."""
        for replica in self._known.take_silent(late_s):
            for number in self._open.of(replica):  # it may only stand still, and would go on with them for nobody
                self._cancel(replica, number)
            self._drop(replica.replica_id, linger_ms=_LAST_WORDS_MS)

    @property
    def heard(self) -> frozenset[str]:
        """Replicas that tell their state."""
        return frozenset(self._replicas)

    def renew(self) -> None:
        """Tell the replicas that this process is still there; they forget who says nothing."""
        message = RegisterMessage(PROTOCOL_VERSION, 0, self._own_address())
        for replica in self._replicas.values():
            self._senders.send(replica.address, message)

    def take_peak(self) -> int:
        """The most calls that were under way at once since the last time."""
        peak, self.peak_calls = self.peak_calls, self.num_calls
        return peak

    async def call(self, make: MakeCall, wait_s: float | None) -> Reply:
        """The reply to a call that can be made again. Cancelling gives it up.

        wait_s: how long to wait for a replica that can take it; None: without limit. One that sleeps is waited for
        until it has started. Raises a RayshardError: the replica's own, or UnavailableError when none takes the call.
        """
        with self.counted():
            for _attempt in range(_MAX_ATTEMPTS):
                with suppress(ReplicaLostError):
                    reply = await self.call_once(make, wait_s)
                    assert reply is not None, "only a stream has enough before its reply"
                    return reply
        raise UnavailableError(f"{_MAX_ATTEMPTS} replicas have died while they ran the request", retry_after_s=1.0)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a call as under way, however many replicas it takes."""
        self.num_calls += 1
        self.peak_calls = max(self.peak_calls, self.num_calls)
        try:
            yield
        finally:
            self.num_calls -= 1

    async def call_once(
        self,
        make: MakeCall,
        wait_s: float | None,
        stream: TokenStream | None = None,
        prompt: RoutedPrompt | None = None,
    ) -> Reply | None:
        """As `call`, with one replica; None when its stream has all that is wanted. Raises ReplicaLostError.

        A stream that goes on does so with a copy of the same version only. Raises UnavailableError when there is none
        any more.
        """
        fit = self._known.fit(stream) or await self._wait_for_some(wait_s, stream)
        replica, choice = self._choose(fit, prompt)
        num_sequences = 1
        if stream is not None:
            stream.version = replica.version or stream.version
            num_sequences = stream.num_choices
        if prompt is None or choice is None:
            return await self._call_on(replica, make, stream, num_sequences)
        reply = await self._call_on(
            replica, make, stream, num_sequences, lambda: self.chooser.note_sent(replica, prompt, choice)
        )
        if stream is not None:
            self.chooser.note_ended(prompt.num_tokens - choice.num_held_tokens, stream.num_tokens)
        return reply

    async def _call_on(
        self,
        replica: Replica,
        make: MakeCall,
        stream: TokenStream | None,
        num_sequences: int,
        when_sent: Callable[[], None] = lambda: None,
    ) -> Reply | None:
        call = OpenCall(replica, asyncio.get_running_loop().create_future(), stream)
        number = self._open.add(call)
        replica.num_calls += 1
        replica.num_sequences += num_sequences
        replica.most_sequences = max(replica.most_sequences, replica.num_sequences)
        reply: Reply | None = None
        try:
            if not self._senders.send(replica.address, make(number, self._own_address())):
                raise QueueFullError("too much is on its way to the model; try again later", retry_after_s=1.0)
            when_sent()
            reply = await call.reply
        finally:
            self._open.remove(number)
            replica.num_calls -= 1
            replica.num_sequences -= num_sequences
            if reply is None and self._replicas.get(replica.replica_id) is replica:  # no other process has its name
                self._cancel(replica, number)
            del call  # its future holds the error that is raised, and the error this frame
        if isinstance(reply, ErrorMessage):
            told = reply.error
            raise error_of_kind(told.error, told.message, told.field, told.retry_after_s)
        return reply

    async def call_each(self, make: MakeCall, limit_s: float) -> list[Reply]:
        """What each replica replies that has told its state of late; who is lost, fails or takes longer is left out."""
        replies = await asyncio.gather(*(self._ask(replica, make, limit_s) for replica in self._known.fresh()))
        return [reply for reply in replies if reply is not None]

    async def _ask(self, replica: Replica, make: MakeCall, limit_s: float) -> Reply | None:
        with suppress(ReplicaLostError, TimeoutError, RayshardError):
            async with asyncio.timeout(limit_s):
                return await self._call_on(replica, make, None, num_sequences=1)
        return None

    def _choose(self, fit: list[Replica], prompt: RoutedPrompt | None) -> tuple[Replica, Choice | None]:
        if prompt is None or len(self._replicas) == 1:  # what a lone one holds need not be known
            return min(fit, key=lambda replica: replica.num_calls), None
        return self.chooser.choose(fit, prompt)

    async def _wait_for_some(self, wait_s: float | None, stream: TokenStream | None) -> list[Replica]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(wait_s) as limit:
                while not (fit := self._known.fit(stream)):
                    if stream is not None and self._known.is_replaced(stream):
                        raise UnavailableError(
                            "the model was changed while the request ran, and the copy that ran it has died: the "
                            "changed one cannot go on with its answer; ask again",
                            retry_after_s=1.0,
                        )
                    if wait_s is not None:
                        limit.reschedule(began_s + (max(wait_s, _WAKE_S) if self.is_asleep else wait_s))
                    self._changed.clear()
                    await self._changed.wait()
                return fit
        except TimeoutError as error:
            raise UnavailableError(
                f"no copy of the model was ready within {wait_s:g} s; try again", retry_after_s=1.0
            ) from error

    def _cancel(self, replica: Replica, number: int) -> None:
        self._senders.send(replica.address, CancelMessage(PROTOCOL_VERSION, 0, number, self._own_address()))

    def _drop(self, replica_id: str, linger_ms: int = 0) -> None:
        replica = self._replicas.pop(replica_id, None)
        if replica is None:
            return
        self.chooser.forget(replica_id)
        self._senders.forget(replica.address, linger_ms)
        for call in self._open.of(replica).values():
            if not call.reply.done():
                call.reply.set_exception(ReplicaLostError())
