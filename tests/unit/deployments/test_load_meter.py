"""How a copy's load becomes shares of what it can do."""

import pytest

from serve_app.deployments.copy_work import Signals
from serve_app.deployments.load_meter import LoadMeter


class Copy:
    """A copy that computes tokens as a test says, second after second."""

    def __init__(self, capacity_tokens_per_s: float | None = None) -> None:
        self.now_s = 0.0
        self.num_tokens = 0
        self.meter = LoadMeter(capacity_tokens_per_s, lambda: self.now_s)

    def run(self, seconds: int, tokens_per_s: int, num_waiting: int = 0) -> float:
        """The share of its capacity in the end."""
        for _ in range(seconds):
            self.now_s += 1.0
            self.num_tokens += tokens_per_s
            reading = self.meter.read(Signals(0.0, num_waiting, self.num_tokens), 12.0)
        return reading.capacity_usage


def test_what_a_copy_can_do_is_learned_while_something_always_waits() -> None:
    copy = Copy()
    assert copy.run(20, 500) == 0.0, "never full: nobody knows what it could do"
    assert copy.run(20, 1000, num_waiting=3) == pytest.approx(1.0)
    assert copy.run(20, 500) == pytest.approx(0.5)
    assert copy.meter.capacity_tokens_per_s == pytest.approx(1000)


def test_a_short_burst_with_a_queue_is_not_what_it_can_do() -> None:
    copy = Copy()
    for _ in range(10):
        copy.run(4, 5000, num_waiting=1)
        copy.run(2, 0)
    assert copy.meter.capacity_tokens_per_s is None


def test_a_capacity_that_is_given_holds_from_the_first_second() -> None:
    copy = Copy(capacity_tokens_per_s=2000)
    assert copy.run(11, 1500) == pytest.approx(0.75)
    assert copy.run(20, 3000, num_waiting=3) == pytest.approx(1.5)


def test_the_loss_of_the_shards_is_no_negative_load() -> None:
    copy = Copy(capacity_tokens_per_s=1000)
    copy.run(10, 1000)
    copy.num_tokens = 0
    assert copy.run(1, 0) == 0.0
    assert copy.run(11, 500) == pytest.approx(0.5)


def test_the_share_is_the_larger_of_tokens_and_sequences() -> None:
    meter = LoadMeter(None, lambda: 0.0)
    reading = meter.read(Signals(1.5, 2, 10, slot_usage=0.6, kv_usage=0.3), 12.0)
    assert (reading.queue_delay_s, reading.kv_usage, reading.capacity_usage, reading.startup_s) == (1.5, 0.3, 0.6, 12.0)
