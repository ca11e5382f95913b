"""Draining: no request is taken any more, and those that run may end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from serve_app.cli.clock import Clock
from serve_app.cli.serve_events import Drained, Draining, Event
from serve_app.types.draining import RequestsLeft

_POLL_S = 0.25
_CLOSING_S = 1.0  # what a proxy had taken before then has reached a replica


class Ingress(Protocol):
    """Where requests come in."""

    def close(self) -> None:
        """Take no more of them."""
        ...

    def num_requests(self) -> int:
        """How many run."""
        ...


def drain(ingress: Ingress, drain_s: float, tell: Callable[[Event], None], clock: Clock) -> bool:
    """Let the requests at hand end, for drain_s at most; whether they have."""
    started_s = clock.now_s()
    ingress.close()
    told = 0
    while True:
        num_requests = ingress.num_requests()
        if num_requests not in (0, told):
            told = num_requests
            tell(Draining(num_requests))
        waited_s = clock.now_s() - started_s
        if waited_s >= drain_s or (num_requests == 0 and waited_s >= _CLOSING_S):
            tell(Drained(num_requests))
            return num_requests == 0
        clock.sleep(_POLL_S)


def requests_left(before: Mapping[str, int], told: Sequence[RequestsLeft], num_silent: int) -> dict[str, int]:
    """What is left at each replica, by its name; `before`: what was when they were asked last.

    A replica that is too busy to answer has as many as before, and one if it has never answered; one that has ended
    has none.
    """
    left = {one.replica: one.num_requests for one in told}
    if num_silent:
        left = {**before, **left}
    num_unknown = num_silent - (len(left) - len(told))
    return left | {f"unknown {number}": 1 for number in range(num_unknown)}
