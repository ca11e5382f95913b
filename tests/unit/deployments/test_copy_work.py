"""What is counted of a copy's queue, by a clock of the test's own."""

from serve_app.deployments.copy_work import QueueTimes
from serve_app.types.generation import LAST_PRIORITY


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_the_queue_counts_what_has_started_once() -> None:
    clock = Clock()
    queue: QueueTimes[str] = QueueTimes(clock)
    queue.add("a", "b")
    clock.now_s += 0.5
    queue.start("a")
    queue.start("a")
    queue.forget("a", "b")
    queue.start("b")
    assert (queue.times.count, queue.times.sum_s) == (1, 0.5)


def test_what_waits_on_purpose_is_not_counted_and_is_still_the_oldest() -> None:
    clock = Clock()
    queue: QueueTimes[str] = QueueTimes(clock)
    queue.add("line", priority=LAST_PRIORITY)
    clock.now_s += 2.0
    queue.add("line that leaves", priority=LAST_PRIORITY)
    queue.add("client", priority=LAST_PRIORITY - 1)
    clock.now_s += 0.5
    assert queue.oldest_s == 2.5
    queue.start("line")
    queue.start("client")
    queue.forget("line that leaves")
    assert (queue.times.count, queue.times.sum_s) == (1, 0.5)
    queue.add("line that leaves")
    queue.start("line that leaves")
    assert queue.times.count == 2
