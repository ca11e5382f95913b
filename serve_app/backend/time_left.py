"""What is left of a request's time. It travels as a number of seconds: clocks of two machines do not agree."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from serve_app.errors import TimeoutExceededError

ResultT = TypeVar("ResultT")


class TimeLeft:
    """The time of one request, by this process's clock, from now on. None: any."""

    def __init__(self, limit_s: float | None = None) -> None:
        self._end_s = None if limit_s is None else time.monotonic() + limit_s

    @property
    def seconds(self) -> float | None:
        """How much is left, not below 0; None: any."""
        return None if self._end_s is None else max(0.0, self._end_s - time.monotonic())

    async def bound(self, work: Awaitable[ResultT]) -> ResultT:
        """What the work comes to; raises TimeoutExceededError."""
        try:
            async with asyncio.timeout(self.seconds) as limit:
                return await work
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutExceededError(
                "the request's time passed before it was answered; ask for less, or raise request_timeout_s or "
                "x-request-timeout-ms"
            ) from error
