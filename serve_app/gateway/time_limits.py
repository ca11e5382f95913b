"""How long a request may take, by the Gateway's settings and by what its client says in a header or metadata."""

import asyncio
from collections.abc import Awaitable, Mapping
from contextvars import ContextVar
from typing import TypeVar

from serve_app.backend.time_left import TimeLeft
from serve_app.errors import RequestError, TimeoutExceededError

TIMEOUT_KEY = "x-request-timeout-ms"  # Serve shows a replica no gRPC deadline; HTTP has none
_MAX_DIGITS = 9
ResultT = TypeVar("ResultT")
_ASKED: ContextVar[object] = ContextVar("asked", default=None)  # what the client has sent under that key
_WAITED_S: ContextVar[float] = ContextVar("waited_s", default=0.0)  # of the request's time, before `within` counts it
_LEFT: ContextVar[TimeLeft] = ContextVar("time_left")


def begin_request(asked: object) -> None:
    """Note, for this task alone, what a request's client has sent under TIMEOUT_KEY; none of its time has passed."""
    _ASKED.set(asked)
    _WAITED_S.set(0.0)


def note_wait(seconds: float) -> None:
    """A request has waited before its work began: `within` takes that off its time, unless it counts already."""
    if _LEFT.get(None) is None:
        _WAITED_S.set(_WAITED_S.get() + seconds)


def time_limit_of(given: Mapping[str, object], limit_s: float | None) -> float | None:
    """Seconds that a request with these headers may take, no more than limit_s; None: any. Raises RequestError."""
    asked = given.get(TIMEOUT_KEY)
    if asked is None:
        return limit_s
    digits = asked.lstrip("0") if isinstance(asked, str) and asked.isascii() and asked.isdecimal() else ""
    if not 0 < len(digits) <= _MAX_DIGITS:
        message = f"{TIMEOUT_KEY} is not a number of milliseconds; send an integer above 0"
        raise RequestError(message, field=TIMEOUT_KEY)
    asked_s = int(digits) / 1000
    return asked_s if limit_s is None else min(asked_s, limit_s)


async def within(limit_s: float | None, work: Awaitable[ResultT]) -> ResultT:
    """What the work comes to; raises TimeoutExceededError. limit_s: of the request, what it has waited included."""
    left_s = None if limit_s is None else _rest_of(limit_s)
    token = _LEFT.set(TimeLeft(left_s))
    try:
        async with asyncio.timeout(left_s) as limit:
            return await work
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimeoutExceededError(
            f"the request took longer than {limit_s:g} s; ask for less, or raise request_timeout_s or {TIMEOUT_KEY}"
        ) from error
    finally:
        _LEFT.reset(token)


def time_left() -> TimeLeft:
    """Of the request that this task works on; it travels with what it asks of models."""
    return _LEFT.get(None) or TimeLeft()


def wait_limit_s(most_s: float, request_limit_s: float | None) -> float:
    """How long a request may wait before its work begins: most_s, or all of its time where that is less.

    request_limit_s: as the Gateway's settings say. Raises RequestError.
    """
    limit_s = time_limit_of({TIMEOUT_KEY: _ASKED.get()}, request_limit_s)
    limits = (None if limit_s is None else _rest_of(limit_s), time_left().seconds)
    return min([most_s, *(one_s for one_s in limits if one_s is not None)])


def _rest_of(limit_s: float) -> float:
    return max(0.0, limit_s - _WAITED_S.get())
