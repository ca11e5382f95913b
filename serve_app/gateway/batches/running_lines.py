"""How many requests of batches this Gateway replica runs at once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class RunningLines:
    """Of all batches together. Turns go in order of asking, so that no batch takes them all."""

    def __init__(self, max_running: int) -> None:
        self._turns = asyncio.Semaphore(max_running)
        self._num_running: Counter[str] = Counter()  # by model

    def of(self, model: str) -> int:
        """Those that run at a model."""
        return self._num_running[model]

    @asynccontextmanager
    async def one_of(self, model: str) -> AsyncIterator[None]:
        """While a request of a model runs, which begins when it has its turn."""
        async with self._turns:
            self._num_running[model] += 1
            try:
                yield
            finally:
                self._num_running[model] -= 1
