"""Threads for text work, so that the event loop never waits for it. Memory that long texts took is given back."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from serve_app.errors import QueueFullError
from serve_app.freed_memory import give_back_freed_memory

_LONG_S = 0.1  # a text that takes longer leaves megabytes behind: each token is 200 bytes while it is made

P = ParamSpec("P")
T = TypeVar("T")
GivenT = TypeVar("GivenT")


class TextPool:
    """A bounded number of threads with a bounded queue. Used from one event loop."""

    def __init__(self, num_threads: int, *, max_waiting: int = 1024, name: str = "text") -> None:
        self._executor = ThreadPoolExecutor(max_workers=num_threads, thread_name_prefix=f"rayshard-{name}")
        self._max_pending = num_threads + max_waiting
        self._num_pending = 0
        self._has_freed_much = False
        self._name = name

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Result of `function` run in a thread. Raises QueueFullError when too much waits."""
        if self._num_pending >= self._max_pending:
            raise QueueFullError(
                f"{self._num_pending} requests wait for {self._name} work; try again later", retry_after_s=1.0
            )
        self._num_pending += 1
        future = self._executor.submit(self._timed, partial(function, *args, **kwargs))
        wrapped = asyncio.wrap_future(future)
        wrapped.add_done_callback(self._finished)
        return await wrapped

    async def run_each(self, function: Callable[[GivenT], T], values: Iterable[GivenT]) -> list[T]:
        """Result of `function` for each value, in one thread; cancelled, it ends with the value at hand."""
        is_given_up = threading.Event()
        try:
            return await self.run(_call_each, function, values, is_given_up)
        finally:
            is_given_up.set()

    def close(self, *, is_waiting: bool = False) -> None:
        """Stop taking work; running work ends by itself, and may be waited for."""
        self._executor.shutdown(wait=is_waiting, cancel_futures=True)

    def _timed(self, job: Callable[[], T]) -> T:
        started_s = time.perf_counter()
        try:
            return job()
        finally:
            self._has_freed_much |= time.perf_counter() - started_s > _LONG_S

    def _finished(self, _future: asyncio.Future[T]) -> None:
        self._num_pending -= 1
        if self._num_pending == 0 and self._has_freed_much:
            self._has_freed_much = False
            with contextlib.suppress(RuntimeError):  # the pool is closed
                self._executor.submit(give_back_freed_memory)


def _call_each(function: Callable[[GivenT], T], values: Iterable[GivenT], is_given_up: threading.Event) -> list[T]:
    results: list[T] = []
    for value in values:
        if is_given_up.is_set():
            break
        results.append(function(value))
    return results
