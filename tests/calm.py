"""How long the machine has let this process run: bounds of wall time that a busy machine cannot break."""

import asyncio
import time
from types import TracebackType

_TURN_S = 0.02
_STALL_S = 0.15  # the event loop has its turn that much too late: the process stood still


class Calm:
    """Seconds since its beginning, or since the process stood still last; it runs beside what is measured."""

    def __init__(self) -> None:
        self._since_s = self._asked_s = time.monotonic()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Calm":
        self._since_s = self._asked_s = time.monotonic()
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        assert self._watching is not None
        self._watching.cancel()

    @property
    def lasted_s(self) -> float:
        """How long all went on without a stop of this process."""
        self._look()
        return time.monotonic() - self._since_s

    async def _watch(self) -> None:
        while True:
            self._asked_s = time.monotonic()
            await asyncio.sleep(_TURN_S)
            self._look()

    def _look(self) -> None:
        if time.monotonic() - self._asked_s > _TURN_S + _STALL_S:
            self._since_s = time.monotonic()
