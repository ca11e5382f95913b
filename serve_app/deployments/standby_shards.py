"""Which processes a Router's placement group holds: those of its shards, and those that wait for the loss of one."""

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from serve_app.types.shards import EngineKind

logger = logging.getLogger(__name__)

_ANSWER_S = 2.0  # one that has imported everything and takes longer is not well


class Process(Protocol):
    """A process that can hold a shard."""

    place: int  # of the copy's, which a process has alone

    async def prepare(self, kind: EngineKind) -> None:
        """Import what a shard of that kind runs."""
        ...

    async def locate(self) -> object:
        """Returns when it answers."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


ProcessT = TypeVar("ProcessT", bound=Process)


class ShardProcesses(Generic[ProcessT]):
    """Gives processes to shards: one that waits if there is one, else a new one in a place that is free.

    Place 0 is the Router's own. One that waits has imported everything and loaded nothing: it can become any shard.
    """

    def __init__(
        self,
        start: Callable[[int], ProcessT],
        bundle_of: Callable[[int], int],
        kind: EngineKind,
        num_shards: int,
        num_standby: int,
    ) -> None:
        """start: starts a process in the place of that number. bundle_of: of a place; those of one are on one node."""
        self._start_in = start
        self._bundle_of = bundle_of
        self._kind = kind
        self._free = list(range(1, 1 + num_shards + num_standby))
        self._num_standby = num_standby
        self._waiting: list[tuple[ProcessT, asyncio.Task[None]]] = []  # with how its imports end
        self._imports: set[asyncio.Task[None]] = set()  # that have not ended

    async def take(self, shard: int, beside: int) -> ProcessT:
        """A process for a shard, by its index, in the bundle of the place `beside` where there is one.

        A new one is in the shard's own place, unless that is in use.
        """
        bundle = self._bundle_of(beside)
        while self._waiting:
            near = (one for one in self._waiting if self._bundle_of(one[0].place) == bundle)
            process, prepared = taken = next(near, self._waiting[0])
            self._waiting.remove(taken)
            if await _is_well(process, prepared):
                return process
            self.end(process)
        own = 1 + shard
        places = [place for place in self._free if self._bundle_of(place) == bundle] or self._free
        return self._start(own if own in places else places[0])

    def end(self, process: ProcessT) -> None:
        """End a process that was taken."""
        process.kill()
        self._free.append(process.place)

    def stand_by(self) -> None:
        """Start those that are to wait, in the background."""
        for _ in range(self._num_standby - len(self._waiting)):
            process = self._start(self._free[0])
            prepared = asyncio.create_task(self._prepare(process))
            self._imports.add(prepared)
            prepared.add_done_callback(self._note_end)
            self._waiting.append((process, prepared))

    def _start(self, place: int) -> ProcessT:
        self._free.remove(place)
        return self._start_in(place)

    async def _prepare(self, process: ProcessT) -> None:
        await process.prepare(self._kind)
        logger.info("standby shard ready place=%d engine=%s", process.place, self._kind)

    def _note_end(self, prepared: asyncio.Task[None]) -> None:
        self._imports.discard(prepared)
        if not prepared.cancelled():
            prepared.exception()  # `take` looks at it, if it comes to that


async def _is_well(process: Process, prepared: "asyncio.Task[None]") -> bool:
    if not prepared.done():
        return True  # it imports still, and a new one would begin with that
    answer = prepared if prepared.exception() is not None else asyncio.ensure_future(process.locate())
    done, _late = await asyncio.wait([answer], timeout=_ANSWER_S)
    if done and answer.exception() is None:
        return True
    logger.warning("standby shard lost place=%d reason=%s", process.place, answer.exception() if done else "silence")
    answer.cancel()
    return False
