"""The limit of a request's time in a Router's queue."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from serve_app.errors import QueueFullError


@contextmanager
def limited_queue_time(
    ended: "asyncio.Future[Any]", queue_timeout_s: float | None, is_waiting: Callable[[], bool]
) -> Iterator[None]:
    """End a request with QueueFullError when it still waits for its turn after that time; None: no limit."""
    if queue_timeout_s is None:
        yield
        return

    def expire() -> None:
        if is_waiting() and not ended.done():
            message = f"the request waited longer than queue_timeout_s={queue_timeout_s} for its turn"
            ended.set_exception(QueueFullError(message, retry_after_s=1.0))

    timer = asyncio.get_running_loop().call_later(queue_timeout_s, expire)
    try:
        yield
    finally:
        timer.cancel()
