"""A ZeroMQ socket on an event loop: what comes is handed to a function, without a future or a task for each message.

zmq.asyncio makes and queues a future for every message that is awaited or sent, which costs several times what the
message itself does.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import zmq
from zmq.backend import zmq_poll

_MAX_IN_A_ROW = 64  # messages, before others on the loop have their turn
_NOBLOCK = int(zmq.NOBLOCK)  # plain numbers: an operation on pyzmq's flags costs as much as a message
_NOT_LAST = int(zmq.NOBLOCK | zmq.SNDMORE)

Take = Callable[[bytes], None]


class LoopSocket:
    """Reads and writes a socket without ever blocking; a message that nobody has asked for stays in it.

    ZMQ_FD is edge-triggered (zmq_getsockopt(3)): it says once that there is news for the socket, and whatever is done
    with the socket may take that word away. So it is read until nothing is left, and looked at behind every send.
    For the thread of one event loop.
    """

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        """Closed by `close`, not by whoever has made it."""
        self._socket = socket
        self._read = self._read_routed if socket.type == zmq.ROUTER else partial(socket.recv, _NOBLOCK)
        self._read_end = [(socket, int(zmq.POLLIN))]  # as zmq_poll wants it
        self._descriptor = socket.fileno()
        self._loop: asyncio.AbstractEventLoop | None = None  # that watches the descriptor
        self._take: Take | None = None  # of `deliver`; None: nobody wants messages
        self._ended: asyncio.Future[None] | None = None  # of that `deliver`
        self._is_draining = False
        self._is_due = False  # a call of `_notice_due` is in the loop's queue: a second one would double what it reads

    async def deliver(self, take: Take) -> None:
        """Hand every message to `take` as it comes, until cancelled; raises what `take` raises.

        Of a ROUTER's message the last frame, without its peer's name; of others each frame is one. What has not been
        handed on then is found by the next call. Only one at a time.
        """
        assert self._take is None, "somebody reads this socket already"
        loop = self._watching_loop()
        self._take, self._ended = take, loop.create_future()
        self._notice_soon(loop)  # what is there already is not told
        try:
            await self._ended
        finally:
            self._take = self._ended = None

    def send(self, frames: Sequence[bytes]) -> None:
        """Send a message. Raises zmq.Again where the socket takes no more; a ROUTER drops it then."""
        try:
            for frame in frames[:-1]:
                self._socket.send(frame, _NOT_LAST)
            self._socket.send(frames[-1], _NOBLOCK)
        finally:
            if self._loop is not None and not self._is_draining and zmq_poll(self._read_end, 0):
                self._notice_soon(self._loop)

    def close(self) -> None:
        """Close the socket, without what is unsent; a `deliver` is cancelled. May be called again."""
        if self._socket.closed:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)  # before the number becomes another file's
            if self._ended is not None:
                self._ended.cancel()
        self._socket.close(linger=0)

    def _watching_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._descriptor)
            self._loop, self._is_due = loop, False
            loop.add_reader(self._descriptor, self._notice)
        return loop

    def _notice_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the loop's next round, once."""
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._notice_due)

    def _notice_due(self) -> None:
        self._is_due = False
        self._notice()

    def _notice(self) -> None:
        """There may be news."""
        if self._ended is not None and not self._ended.done():
            self._drain()
        elif not self._socket.closed:
            zmq_poll(self._read_end, 0)  # takes the word away: the loop would bring it again and again

    def _drain(self) -> None:
        """Hand on what is there; what is left after many goes on in the loop's next round."""
        loop, take, ended = self._loop, self._take, self._ended
        assert loop is not None
        assert take is not None
        assert ended is not None
        self._is_draining = True
        try:
            for _ in range(_MAX_IN_A_ROW):
                try:
                    frame = self._read()
                except zmq.Again:
                    return
                take(frame)
                # To look costs less than an empty `recv`, or than to ask for the option ZMQ_EVENTS.
                if ended.done() or not zmq_poll(self._read_end, 0):  # cancelled or closed by what it was given
                    return
            self._notice_soon(loop)
        except (KeyboardInterrupt, SystemExit):
            raise
        except asyncio.CancelledError:
            ended.cancel()  # as a task that takes it
        except BaseException as error:  # told by `deliver`
            if not ended.done():
                ended.set_exception(_as_told(error))
        finally:
            self._is_draining = False

    def _read_routed(self) -> bytes:
        """What follows the name of the peer that has sent it, or zmq.Again."""
        self._socket.recv(_NOBLOCK)
        frame = self._socket.recv(_NOBLOCK, copy=False)
        while frame.more:  # a stranger's: the last one counts
            frame = self._socket.recv(_NOBLOCK, copy=False)
        return frame.bytes


def _as_told(error: BaseException) -> BaseException:
    """A future refuses StopIteration; a coroutine makes RuntimeError of it, too."""
    if not isinstance(error, StopIteration):
        return error
    told = RuntimeError("StopIteration in what takes messages")
    told.__cause__ = error
    return told
