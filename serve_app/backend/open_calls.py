"""The calls of one process that wait for an answer."""

import asyncio
import itertools
from dataclasses import dataclass, field

from serve_app.backend.known_replicas import Replica
from serve_app.backend.token_stream import TokenStream
from serve_app.wire.messages import Reply, TokenBatch, unpack_batch


@dataclass(slots=True, eq=False)
class OpenCall:
    """A call that one replica has."""

    replica: Replica
    reply: asyncio.Future[Reply | None]  # None: its stream has all that is wanted
    stream: TokenStream | None


@dataclass(slots=True)
class OpenCalls:
    """All calls of this process that wait for an answer, by their numbers; none is given twice."""

    _calls: dict[int, OpenCall] = field(default_factory=dict)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def add(self, call: OpenCall) -> int:
        """Give a call its number."""
        number = next(self._numbers)
        self._calls[number] = call
        return number

    def remove(self, number: int) -> None:
        """The call has ended: what still comes for it is dropped."""
        del self._calls[number]

    def of(self, replica: Replica) -> dict[int, OpenCall]:
        """Those that a replica has."""
        return {number: call for number, call in self._calls.items() if call.replica is replica}

    def take_reply(self, reply: Reply) -> None:
        """Hand a reply to the call that waits for it."""
        call = self._calls.get(reply.stream)
        if call is not None and not call.reply.done():
            call.reply.set_result(reply)

    def take_tokens(self, batch: TokenBatch) -> None:
        """Hand tokens to their streams. What one stream makes of them ends that stream only."""
        for number, chunk in unpack_batch(batch):
            call = self._calls.get(number)
            if call is None or call.stream is None or call.reply.done():
                continue
            try:
                is_more_wanted = call.stream.feed(chunk)
            except Exception as error:  # told by the task that waits for the reply
                call.reply.set_exception(error)
            else:
                if not is_more_wanted:
                    call.reply.set_result(None)
