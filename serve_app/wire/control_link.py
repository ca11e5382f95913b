"""The control link between a Router and the shards of one copy, for one epoch of theirs. See links."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zmq

from serve_app.types.plans import MemoryTaken
from serve_app.types.steps import BatchStep, BatchStepOutput, GrammarChange, StepInput, StepOutput
from serve_app.wire.loop_socket import LoopSocket
from serve_app.wire.messages import (
    PROTOCOL_VERSION,
    BatchOutputMessage,
    BatchStepMessage,
    GrammarMessage,
    GrammarReadyMessage,
    HeartbeatMessage,
    HelloMessage,
    OutputMessage,
    StageTimeMessage,
    StepMessage,
    StopMessage,
    ToRouter,
    ToShard,
)
from serve_app.wire.sockets import UNREADABLE, Dropped, bind, make_client, make_server

SendBeat = Callable[[int, float | None, MemoryTaken | None], None]
_LOOK_MS = 250  # how often one that waits for steps looks whether they are wanted
_LEAVE = b":leave"


@dataclass(frozen=True, slots=True)
class ControlAddress:
    """Where a shard finds its Router; `server_key` is a capability: never logged."""

    endpoint: str
    server_key: str = field(repr=False)
    epoch: int


class ControlServer:
    """The Router's end of the control link, for one epoch of the shard group."""

    def __init__(self, host: str, epoch: int, num_shards: int) -> None:
        self._epoch = epoch
        self._num_shards = num_shards
        self._context = zmq.Context()
        bound: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        server_key = make_server(bound)
        self.address = ControlAddress(bind(bound, host), server_key, epoch)
        self._socket = LoopSocket(bound)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToRouter)
        self._peers = [f"{epoch}:{index}".encode() for index in range(num_shards)]
        self.num_sent_bytes = 0
        self._dropped = Dropped()

    def send_step(self, step: StepInput | BatchStep) -> None:
        """Hand a step to every shard."""
        if isinstance(step, BatchStep):
            self._send(BatchStepMessage(PROTOCOL_VERSION, self._epoch, step))
        else:
            self._send(StepMessage(PROTOCOL_VERSION, self._epoch, step))

    def send_grammar(self, change: GrammarChange) -> None:
        """Have a grammar compiled beside the steps, or forgotten."""
        self._send(GrammarMessage(PROTOCOL_VERSION, self._epoch, change))

    def send_stop(self) -> None:
        """Ask every shard to end its run."""
        self._send(StopMessage(PROTOCOL_VERSION, self._epoch))

    def send_leave(self) -> None:
        """Ask every shard to end its run, also where it waits for one that is gone.

        One whose link is not up at this moment does not hear it: to be called again until it has left.
        """
        message = StopMessage(PROTOCOL_VERSION, self._epoch)
        self._send(message)
        payload = self._encoder.encode(message)
        for peer in self._peers:
            self._socket.send((peer + _LEAVE, payload))

    async def deliver(self, take: Callable[[ToRouter], None]) -> None:
        """Hand every message of this epoch to `take` as it comes, until cancelled; raises what `take` raises.

        Others, and what cannot be read, are dropped. What has not been handed on then is found by the next call.
        """
        decode, epoch = self._decoder.decode, self._epoch

        def take_payload(payload: bytes) -> None:
            try:
                message: ToRouter = decode(payload)
            except UNREADABLE as error:
                self._dropped.note(f"unreadable: {error}")
                return
            if message.version != PROTOCOL_VERSION:
                self._dropped.note(f"protocol version {message.version}")
            elif message.epoch == epoch:
                take(message)

        await self._socket.deliver(take_payload)

    def close(self) -> None:
        """Drop what is unsent and close."""
        self._socket.close()
        self._context.destroy(linger=0)

    def _send(self, message: ToShard) -> None:
        payload = self._encoder.encode(message)
        self.num_sent_bytes += len(payload) * len(self._peers)
        for peer in self._peers:
            self._socket.send((peer, payload))


class ControlClient:
    """A shard's end of the control link. Blocking; one thread uses `receive` and `send_output`."""

    def __init__(self, address: ControlAddress, shard_index: int) -> None:
        self._epoch = address.epoch
        self._shard_index = shard_index
        self._context = zmq.Context()
        self._ending = threading.Lock()  # a context that two threads terminate at once is freed twice
        self._sockets: list[zmq.Socket[Any]] = []  # open until `close`, whoever else lets go of them
        self._address = address
        self._socket = self._connect(f"{address.epoch}:{shard_index}")
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToShard)

    def send_hello(self) -> None:
        """Tell the Router that steps may come."""
        self._socket.send(self._encoder.encode(HelloMessage(PROTOCOL_VERSION, self._epoch, self._shard_index)))

    def receive(self, is_wanted: Callable[[], bool] | None = None) -> StepInput | BatchStep | GrammarChange | None:
        """The next step, or what to do with a grammar before it.

        None when the run is to end: the Router says so, or no step is wanted any more.
        """
        while True:
            while is_wanted is not None and not self._socket.poll(_LOOK_MS):
                if not is_wanted():
                    return None
            message = self._decoder.decode(self._socket.recv())
            if message.version != PROTOCOL_VERSION or message.epoch != self._epoch:
                continue
            if isinstance(message, GrammarMessage):
                return message.change
            return None if isinstance(message, StopMessage) else message.step

    def send_output(self, output: StepOutput | BatchStepOutput) -> None:
        """Give the Router what a step has come to."""
        message: ToRouter
        if isinstance(output, BatchStepOutput):
            message = BatchOutputMessage(PROTOCOL_VERSION, self._epoch, output)
        else:
            message = OutputMessage(PROTOCOL_VERSION, self._epoch, output)
        self._socket.send(self._encoder.encode(message))

    def send_stage_time(self, step_id: int, busy_s: float) -> None:
        """Tell the Router how long a step that was to be timed has taken here; by the thread of `receive`."""
        message = StageTimeMessage(PROTOCOL_VERSION, self._epoch, self._shard_index, step_id, busy_s)
        self._socket.send(self._encoder.encode(message))

    def output_sender(self) -> Callable[[StepOutput], None]:
        """A function for one other thread, in place of `send_output`."""
        socket = self._connect(f"{self._epoch}:{self._shard_index}:output")
        encoder = msgspec.msgpack.Encoder()

        def send(output: StepOutput) -> None:
            socket.send(encoder.encode(OutputMessage(PROTOCOL_VERSION, self._epoch, output)))

        return send

    def grammar_sender(self) -> Callable[[int], None]:
        """A function for one other thread: tells the Router that the grammar of this number is compiled."""
        socket = self._connect(f"{self._epoch}:{self._shard_index}:grammar")
        encoder = msgspec.msgpack.Encoder()

        def send(number: int) -> None:
            socket.send(encoder.encode(GrammarReadyMessage(PROTOCOL_VERSION, self._epoch, number)))

        return send

    def heartbeat_sender(self) -> SendBeat:
        """A function for one other thread: tells the Router that this process lives, and what it has done."""
        socket = self._connect(f"{self._epoch}:{self._shard_index}:heartbeat")
        encoder = msgspec.msgpack.Encoder()

        def send(num_steps_done: int, busy_s: float | None, memory: MemoryTaken | None) -> None:
            done = (num_steps_done, busy_s, memory)
            message = HeartbeatMessage(PROTOCOL_VERSION, self._epoch, self._shard_index, *done)
            socket.send(encoder.encode(message), flags=zmq.NOBLOCK)

        return send

    def leave_listener(self) -> Callable[[float], bool]:
        """A function for one other thread: waits for so many seconds, and tells whether the shard is to leave."""
        socket = self._connect(f"{self._epoch}:{self._shard_index}{_LEAVE.decode()}")

        def is_told(timeout_s: float) -> bool:
            return bool(socket.poll(int(timeout_s * 1000)))

        return is_told

    def close(self) -> None:
        """Drop what is unsent and close; lets an `interrupt` return that waits for it."""
        for socket in self._sockets:
            socket.close(linger=0)
        self._terminate()

    def interrupt(self) -> None:
        """Let a `receive` in another thread end with zmq.ContextTerminated; returns when that thread has closed."""
        self._terminate()

    def _terminate(self) -> None:
        with self._ending:
            if not self._context.closed:
                self._context.term()

    def _connect(self, identity: str) -> zmq.Socket[Any]:
        socket = self._context.socket(zmq.DEALER)
        self._sockets.append(socket)
        socket.identity = identity.encode()
        make_client(socket, self._address.server_key)
        socket.connect(self._address.endpoint)
        return socket
