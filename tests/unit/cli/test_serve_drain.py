"""Draining, on a clock that stands still."""

from dataclasses import dataclass, field

from serve_app.cli.serve_drain import drain, requests_left
from serve_app.cli.serve_events import Drained, Draining, Event
from serve_app.types.draining import RequestsLeft
from tests.unit.cli.fake_dashboard import FakeTime


@dataclass
class FakeIngress:
    """Requests that end at given times."""

    time: FakeTime
    end_s: list[float]
    is_closed: bool = False
    events: list[Event] = field(default_factory=list)

    def close(self) -> None:
        self.is_closed = True

    def num_requests(self) -> int:
        assert self.is_closed, "one more could come"
        return sum(end_s > self.time.slept_s for end_s in self.end_s)


def drained(end_s: list[float], drain_s: float) -> tuple[bool, list[Event], float]:
    """Whether all have ended, what was told, and how long it took."""
    time = FakeTime()
    ingress = FakeIngress(time, end_s)
    has_ended = drain(ingress, drain_s, ingress.events.append, time.clock)
    return has_ended, ingress.events, time.slept_s


def test_it_waits_for_the_last_request_and_tells_how_many_run() -> None:
    has_ended, events, waited_s = drained([3.0, 3.0, 20.0], 30)
    assert has_ended
    assert events == [Draining(3), Draining(1), Drained(0)]
    assert waited_s == 20


def test_it_waits_no_longer_than_it_may() -> None:
    has_ended, events, waited_s = drained([3.0, 1000.0], 30)
    assert not has_ended
    assert events == [Draining(2), Draining(1), Drained(1)]
    assert waited_s == 30


def test_what_a_proxy_had_taken_before_it_knew_counts() -> None:
    time = FakeTime()
    ingress = FakeIngress(time, [])
    counts = iter([0, 0, 1, 1, 0, 0, 0])
    ingress.num_requests = lambda: next(counts)  # type: ignore[method-assign]
    assert drain(ingress, 30, ingress.events.append, time.clock)
    assert ingress.events == [Draining(1), Drained(0)]


def test_without_requests_it_takes_a_moment() -> None:
    assert drained([], 30) == (True, [Drained(0)], 1.0)
    assert drained([5.0], 0) == (False, [Draining(1), Drained(1)], 0.0)


def test_a_gateway_that_does_not_answer_has_as_many_requests_as_before() -> None:
    first, second = RequestsLeft("a", 3), RequestsLeft("b", 2)
    assert requests_left({}, [first, second], 0) == {"a": 3, "b": 2}
    assert requests_left({"a": 4, "b": 2}, [first], 1) == {"a": 3, "b": 2}
    assert requests_left({"a": 4, "b": 2}, [first], 0) == {"a": 3}  # the other has ended


def test_a_gateway_that_has_never_answered_may_run_a_request() -> None:
    left = requests_left({}, [], 2)
    assert sum(left.values()) == 2
    assert requests_left(left, [], 2) == left
    assert requests_left(left, [RequestsLeft("a", 0), RequestsLeft("b", 0)], 0) == {"a": 0, "b": 0}
