"""What the autoscaling policy decides, by a clock of the test's."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from serve_app.autoscaling.policy import CopyReading, PolicySettings, PolicyState, Snapshot, decide

IDLE = CopyReading(0.0)
BUSY = CopyReading(0.0, kv_usage=0.4, capacity_usage=0.75, startup_s=60.0)


def late(delay_s: float) -> CopyReading:
    """A full copy before which requests wait."""
    return CopyReading(delay_s, kv_usage=0.7, capacity_usage=1.0, startup_s=60.0)


@dataclass
class Model:
    """Copies that start when the policy says so, a minute later."""

    settings: PolicySettings = field(default_factory=lambda: PolicySettings(target_ttft_s=2.0))
    num_target: int = 1
    num_running: int = 1
    min_replicas: int = 1
    max_replicas: int = 100
    now_s: float = 1000.0
    state: PolicyState = field(default_factory=PolicyState)

    def see(self, *readings: CopyReading, requests: float | None = None, after_s: float = 1.0) -> int:
        """One decision; without `requests` there are some wherever a copy tells of load."""
        self.now_s += after_s
        some = float(any(one != IDLE for one in readings))
        snapshot = Snapshot(
            self.now_s,
            self.num_target,
            self.num_running,
            readings,
            some if requests is None else requests,
            self.min_replicas,
            self.max_replicas,
        )
        self.num_target, self.state = decide(self.settings, snapshot, self.state)
        return self.num_target

    def see_for(self, seconds: int, readings: Callable[[int], list[CopyReading]], requests: float | None = None) -> int:
        """The same for that long, while all that was asked for runs. readings: of a number of copies."""
        for _ in range(seconds):
            self.num_running = self.num_target
            self.see(*readings(self.num_target), requests=requests)
        return self.num_target


def test_a_queue_that_takes_more_than_its_share_of_the_target_adds_copies_at_once() -> None:
    model = Model(num_target=4, num_running=4)
    assert model.see(*[late(0.9)] * 4) == 5, "all are full: one more, before anybody waits too long"
    assert model.see(*[late(3.0)] * 4) > 5


def test_full_copies_are_relieved_before_anything_waits() -> None:
    model = Model(num_target=10, num_running=10)
    assert model.see(*[CopyReading(0.0, kv_usage=0.95)] * 10) == 12
    model = Model(num_target=10, num_running=10)
    assert model.see(*[CopyReading(0.0, capacity_usage=0.95)] * 10) == 12


def test_a_lone_copy_with_a_queue_among_idle_ones_is_no_reason() -> None:
    model = Model(num_target=10, num_running=10)
    assert model.see(late(4.0), *[BUSY] * 9) == 10


def test_copies_that_are_starting_count() -> None:
    model = Model(num_target=4, num_running=4)
    first = model.see(*[late(60.0)] * 4)
    assert first > 4
    again = [model.see(*[late(60.0)] * 4) for _ in range(30)]
    assert again == [first] * 30, "the same queue asks for the same copies, not for more of them each second"


def test_a_step_up_is_bounded_by_what_runs_and_by_max_replicas() -> None:
    model = Model(num_target=10, num_running=10)
    assert model.see(*[late(6000.0)] * 10) == 30
    model = Model(num_target=1, num_running=1)
    assert model.see(late(6000.0)) == 5
    model = Model(num_target=1, num_running=1, max_replicas=3)
    assert model.see(late(6000.0)) == 3


def test_a_queue_that_grows_asks_for_more_than_one_that_stands() -> None:
    stands, grows = Model(num_target=10, num_running=10), Model(num_target=10, num_running=10)
    for second in range(20):
        stands.see(*[late(12.0)] * 10)
        grows.see(*[late(2.0 + second / 2)] * 10)
    assert grows.num_target > stands.num_target


def test_copies_go_slowly_and_never_below_what_running_work_needs() -> None:
    model = Model(PolicySettings(2.0, downscale_delay_s=60.0, downscale_step=0.25), num_target=20)

    def work_of_six(num_copies: int) -> list[CopyReading]:
        return [CopyReading(0.0, capacity_usage=6 * 0.8 / num_copies)] * num_copies

    assert model.see_for(60, work_of_six) == 20
    assert model.see_for(2, work_of_six) == 15, "a quarter, after a minute"
    assert model.see_for(59, work_of_six) == 15, "and the next minute begins anew"
    assert model.see_for(600, work_of_six) == 7, "6 / 0.9: so that they are not full at once"


def test_a_peak_within_the_delay_keeps_what_it_needed() -> None:
    model = Model(PolicySettings(2.0, downscale_delay_s=60.0, downscale_step=1.0), num_target=20)
    model.see_for(30, lambda n: [CopyReading(0.0, capacity_usage=0.1)] * n)
    model.see_for(1, lambda n: [CopyReading(0.0, capacity_usage=0.5)] * n)
    assert model.see_for(40, lambda n: [CopyReading(0.0, capacity_usage=0.1)] * n) == 14


def test_nothing_goes_while_a_copy_has_not_told_its_load() -> None:
    model = Model(PolicySettings(2.0, downscale_delay_s=10.0), num_target=4, num_running=4)
    assert [model.see(*[IDLE] * 3) for _ in range(60)] == [4] * 60


def test_copies_that_do_not_start_are_given_up_when_they_are_not_needed_any_more() -> None:
    model = Model(PolicySettings(2.0, downscale_delay_s=10.0, downscale_step=1.0), num_target=9, num_running=3)
    assert [model.see(*[late(90.0)] * 3) for _ in range(30)] == [9] * 30
    assert [model.see(*[CopyReading(0.0, capacity_usage=0.7)] * 3) for _ in range(11)][-1] == 3


def test_a_start_is_not_taken_back_when_who_asked_for_it_has_left() -> None:
    model = Model(PolicySettings(2.0, idle_delay_s=30.0), num_target=0, num_running=0, min_replicas=0)
    assert model.see(requests=1.0, after_s=5000.0) == 1
    assert [model.see(requests=0.0) for _ in range(60)] == [1] * 60


def test_the_last_copy_goes_after_its_idle_time_and_only_where_it_may() -> None:
    settings = PolicySettings(2.0, idle_delay_s=100.0)
    model = Model(settings, min_replicas=0)
    assert model.see_for(100, lambda n: [IDLE] * n) == 1
    assert model.see_for(2, lambda n: [IDLE] * n) == 0
    assert Model(settings, min_replicas=1).see_for(200, lambda n: [IDLE] * n) == 1


@pytest.mark.parametrize("reading", [IDLE, CopyReading(0.0, kv_usage=0.01)])
def test_a_copy_with_a_request_does_not_go(reading: CopyReading) -> None:
    model = Model(PolicySettings(2.0, idle_delay_s=10.0), min_replicas=0)
    assert model.see_for(200, lambda _n: [reading], requests=float(reading == IDLE)) == 1


def test_a_request_wakes_a_model_that_sleeps() -> None:
    model = Model(num_target=0, num_running=0, min_replicas=0)
    assert model.see(requests=0.0) == 0
    assert model.see(requests=1.0) == 1
    assert model.see(requests=3.0, after_s=30.0) == 1, "it is starting"


def test_a_clock_that_goes_back_neither_adds_nor_takes_copies() -> None:
    model = Model(PolicySettings(2.0, downscale_delay_s=10.0), num_target=4, num_running=4)
    model.see(*[IDLE] * 4)
    assert model.see(*[IDLE] * 4, after_s=-500.0) == 4
    assert model.see(*[IDLE] * 4, after_s=5.0) == 4


def test_bounds_that_were_changed_hold_at_once() -> None:
    model = Model(num_target=10, num_running=10, max_replicas=6)
    assert model.see(*[BUSY] * 10) == 6
    model = Model(num_target=1, num_running=1, min_replicas=3)
    assert model.see(IDLE) == 3
