"""Draining: no request is taken any more, and those that run may end."""

from collections.abc import Callable
from typing import Protocol

from serve_app.cli.clock import Clock
from serve_app.cli.serve_events import Drained, Draining, Event

_POLL_S = 0.25
_CLOSING_S = 1.0  # until every proxy knows; what one had taken before then counts


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
