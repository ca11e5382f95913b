"""Times of steps and of stages, by a clock of the test's own."""

from serve_app.deployments.copy_work import QueueTimes
from serve_app.deployments.step_meter import StepMeter


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_a_lone_step_leaves_the_other_stages_idle() -> None:
    clock = Clock()
    meter = StepMeter(4, clock)
    meter.send()
    clock.now_s += 2.0
    meter.end()
    clock.now_s += 100.0  # nothing to do: neither busy nor idle
    assert (meter.busy_s, meter.idle_s) == (2.0, 6.0)
    assert (meter.times.count, meter.times.sum_s) == (1, 2.0)


def test_as_many_steps_as_stages_leave_none_idle() -> None:
    clock = Clock()
    meter = StepMeter(2, clock)
    meter.send()
    clock.now_s += 1.0
    meter.send()
    clock.now_s += 3.0
    meter.end()
    clock.now_s += 1.0
    meter.end()
    assert meter.times.sum_s == 4.0 + 4.0
    assert (meter.busy_s, meter.idle_s) == (1.0 + 2 * 3.0 + 1.0, 1.0 + 1.0)


def test_a_step_sent_ahead_on_one_stage_is_no_second_stage() -> None:
    clock = Clock()
    meter = StepMeter(1, clock)
    meter.send()
    meter.send()
    clock.now_s += 2.0
    meter.end()
    assert (meter.busy_s, meter.idle_s) == (2.0, 0.0)


def test_lost_steps_are_not_timed() -> None:
    clock = Clock()
    meter = StepMeter(2, clock)
    meter.send()
    meter.lose()
    clock.now_s += 10.0
    meter.send()
    clock.now_s += 1.0
    meter.end()
    assert (meter.times.count, meter.times.sum_s, meter.busy_s) == (1, 1.0, 1.0)


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
