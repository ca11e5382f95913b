"""Nothing runs after its time, and what cannot be in time is refused at once. The clock is a number here."""

import random
from collections import Counter

import pytest

from serve_app.errors import QueueFullError
from serve_app.scheduling.deadlines import Deadlines
from serve_app.scheduling.scheduler import Scheduler
from serve_app.scheduling.sequence import Sequence, SequenceState
from serve_app.types.generation import GenerateRequest, Progress, SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepOutput

STEP_S = 0.02
NUM_OUTPUTS = 20
LIMITS = EngineLimits(4, 64, 128, block_size=4, num_blocks=400)


def request_of(name: str = "r", time_left_s: float | None = None, **changes: object) -> GenerateRequest:
    params = SamplingParams(max_tokens=NUM_OUTPUTS, seed=0, ignore_eos=True)
    return GenerateRequest(name, [1] * 8, params, time_left_s=time_left_s, **changes)  # type: ignore[arg-type]


class Copy:
    """A scheduler whose steps take so long, and its clock."""

    def __init__(self, limits: EngineLimits = LIMITS) -> None:
        self.now_s = 100.0
        self.scheduler = Scheduler(limits, num_stages=1, max_queued=1000, has_prefix_cache=False)
        self.late: list[Sequence] = []  # that a step had after their time
        self.begun_s: dict[Sequence, float] = {}

    def add(self, request: GenerateRequest) -> Sequence:
        (sequence,) = self.scheduler.add(request, self.now_s)
        return sequence

    def run_step(self) -> None:
        step = self.scheduler.schedule(self.now_s)
        if step is not None:
            for sequence in self.scheduler._in_flight[step.step_id].sequences:
                self.begun_s.setdefault(sequence, self.now_s)
                if sequence.deadline_s is not None and sequence.deadline_s <= self.now_s:
                    self.late.append(sequence)
        self.now_s += STEP_S
        if step is not None:
            self.scheduler.update(StepOutput(step.step_id, [7] * sum(step.samples)), self.now_s)

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.run_step()


def busy_copy(num_waiting: int = 40) -> Copy:
    """All places are taken, so many wait, and enough was measured."""
    copy = Copy()
    for number in range(8 + num_waiting):
        copy.add(request_of(f"busy {number}"))
    while copy.scheduler.num_waiting > num_waiting or copy.scheduler._record.steps.decoding_s is None:
        copy.run_step()
    while copy.scheduler.num_waiting < num_waiting:
        copy.add(request_of("more"))
    return copy


def test_what_waits_is_dropped_when_its_time_has_passed() -> None:
    copy = Copy()
    for number in range(LIMITS.max_num_seqs):
        copy.add(request_of(str(number)))
    copy.run_step()
    waiting = copy.add(request_of("late", 3.5 * STEP_S))
    copy.run(4)
    assert waiting.state is SequenceState.WAITING
    copy.run(1)
    assert (waiting.state, waiting.finish_reason) == (SequenceState.FINISHED, "abort")
    assert copy.scheduler.num_waiting == 0
    copy.run(50)
    assert waiting not in copy.begun_s


def test_what_runs_is_aborted_and_its_room_is_free() -> None:
    copy = Copy()
    (first, second) = (copy.add(request_of("a", 5.5 * STEP_S)), copy.add(request_of("b")))
    copy.run(6)
    assert first.state is SequenceState.RUNNING
    copy.run(2)
    assert (first.finish_reason, first.num_outputs) == ("abort", 6)
    assert second.num_outputs == 8, "the other goes on"
    copy.scheduler.check()
    copy.run(50)
    assert (second.finish_reason, copy.scheduler.num_free_blocks) == ("length", LIMITS.num_blocks)


def test_all_choices_of_a_request_end_with_its_time() -> None:
    copy = Copy()
    sequences = copy.scheduler.add(request_of("n", STEP_S, num_choices=6), copy.now_s)
    copy.run(3)
    assert {one.finish_reason for one in sequences} == {"abort"}
    assert not copy.scheduler.has_work


def test_a_request_that_cannot_be_in_time_is_refused_with_both_numbers() -> None:
    copy = busy_copy()
    with pytest.raises(QueueFullError, match=r"needs about 4\.\d s in the queue, and has 0\.5 s") as refused:
        copy.add(request_of("late", 0.5))
    assert refused.value.retry_after_s is not None
    assert 3 < refused.value.retry_after_s < 5
    assert copy.scheduler.num_waiting == 40, "nothing is spent on it"
    copy.add(request_of("patient", 30.0))
    copy.add(request_of("without a limit"))


def test_nothing_is_refused_before_anything_was_measured() -> None:
    copy = Copy()
    for number in range(100):
        copy.add(request_of(str(number), 0.001))
    assert copy.scheduler.num_waiting == 100


def test_who_does_not_wait_for_the_queue_is_not_refused() -> None:
    copy = busy_copy()
    copy.add(request_of("another owner's first", 0.5, owner="b"))
    copy.add(request_of("urgent", 0.05, priority=-1))
    copy.add(request_of("resumed", 0.05, progress=Progress([[7, 7]], [False])))
    with pytest.raises(QueueFullError, match="in the queue"):
        copy.add(request_of("of the queue", 0.5))


def test_free_places_are_no_wait_whatever_the_steps_take() -> None:
    copy = busy_copy(num_waiting=0)
    copy.run(NUM_OUTPUTS * 3)
    assert not copy.scheduler.has_work
    for number in range(LIMITS.max_num_seqs):
        copy.add(request_of(str(number), 0.01))
    with pytest.raises(QueueFullError, match="in the queue"):
        copy.add(request_of("one too many", 0.01))


def test_a_queue_that_waits_for_blocks_counts_as_full() -> None:
    copy = Copy(EngineLimits(64, 64, 64, block_size=4, num_blocks=28))
    for number in range(30):
        copy.add(request_of(str(number)))
    copy.run(40)
    assert copy.scheduler.num_running < 6
    with pytest.raises(QueueFullError, match="in the queue"):
        copy.add(request_of("late", 0.1))


@pytest.mark.parametrize("num_waiting", [4, 16, 60])
def test_the_estimate_is_near_what_then_happens(num_waiting: int) -> None:
    copy = busy_copy(num_waiting)
    estimated_s = copy.scheduler.estimated_wait_s("", 0)
    newcomer = copy.add(request_of("newcomer"))
    came_s = copy.now_s
    while newcomer not in copy.begun_s:
        copy.run_step()
    waited_s = copy.begun_s[newcomer] - came_s
    assert 0.7 * waited_s - NUM_OUTPUTS * STEP_S < estimated_s < 1.3 * waited_s + 2 * STEP_S


def test_under_a_full_queue_none_runs_after_its_time() -> None:
    """The issue's line: deadlines of 50 ms, 500 ms and 5 s."""
    coin, copy, ends = random.Random(3), busy_copy(), Counter[str]()
    timed: dict[Sequence, float] = {}
    for _ in range(1500):
        left_s = coin.choice([0.05, 0.5, 5.0])
        request = request_of("timed", left_s, owner=coin.choice("abc"), priority=coin.choice([0, 0, 1]))
        try:
            timed[copy.add(request)] = left_s
        except QueueFullError:
            ends[f"refused {left_s}"] += 1
        while copy.scheduler.num_waiting < 30:
            copy.add(request_of("background"))
        copy.run_step()
    assert not copy.late
    for sequence, left_s in timed.items():
        assert sequence.is_finished or (sequence.deadline_s is not None and sequence.deadline_s > copy.now_s - STEP_S)
        ends[f"{sequence.finish_reason} {left_s}"] += 1
    assert ends["refused 0.05"] > 100
    assert ends["length 5.0"] > 100
    assert ends["length 0.05"] == 0
    assert ends["abort 0.5"] > 0


def test_the_earliest_of_those_that_are_left_counts() -> None:
    deadlines: Deadlines[Sequence] = Deadlines()
    copy = Copy()
    sequences = [copy.add(request_of(str(number), time_left_s)) for number, time_left_s in enumerate((3.0, 1.0, 2.0))]
    for sequence in sequences:
        deadlines.add(sequence)
    deadlines.forget(sequences[1])
    assert deadlines.take_passed(100.5) == []
    assert deadlines.take_passed(102.0) == [sequences[2]]
    assert deadlines.take_passed(102.0) == []
    assert deadlines.take_passed(200.0) == [sequences[0]]


def test_a_backlog_is_what_one_behind_all_would_wait_whoever_has_sent_it() -> None:
    copy = busy_copy()
    assert copy.scheduler.estimated_wait_s("another", 0) == 0.0, "one that runs nothing is let in"
    assert copy.scheduler.estimated_backlog_s() == pytest.approx(copy.scheduler.estimated_wait_s("", 99), rel=0.01)
    assert 3 < copy.scheduler.estimated_backlog_s() < 6
    tokens = copy.scheduler.num_step_tokens
    copy.run(10)
    assert copy.scheduler.num_step_tokens >= tokens + 10
