"""Threads for text work, so that the event loop never waits for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from serve_app.errors import QueueFullError

P = ParamSpec("P")
T = TypeVar("T")


class TextPool:
    """A bounded number of threads with a bounded queue. Used from one event loop."""

    def __init__(self, num_threads: int, *, max_waiting: int = 1024, name: str = "text") -> None:
        self._executor = ThreadPoolExecutor(max_workers=num_threads, thread_name_prefix=f"rayshard-{name}")
        self._max_pending = num_threads + max_waiting
        self._num_pending = 0
        self._name = name

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Result of `function` run in a thread. Raises QueueFullError when too much waits."""
        if self._num_pending >= self._max_pending:
            raise QueueFullError(
                f"{self._num_pending} requests wait for {self._name} work; try again later", retry_after_s=1.0
            )
        self._num_pending += 1
        future = self._executor.submit(function, *args, **kwargs)
        wrapped = asyncio.wrap_future(future)
        wrapped.add_done_callback(self._finished)
        return await wrapped

    def close(self, *, is_waiting: bool = False) -> None:
        """Stop taking work; running work ends by itself, and may be waited for."""
        self._executor.shutdown(wait=is_waiting, cancel_futures=True)

    def _finished(self, _future: asyncio.Future[T]) -> None:
        self._num_pending -= 1
