"""Entries of several priorities, and of requests whose time passes, in models that are done after one step."""

import struct

import pytest

from serve_app.errors import QueueFullError
from serve_app.scheduling.batch_scheduler import BatchModel, BatchScheduler
from serve_app.scheduling.jobs import Job
from serve_app.scheduling.waiting_queue import TURNS
from serve_app.types.steps import BatchStep, BatchStepOutput
from serve_app.types.tensors import InferRequest, Item, TensorData, TensorSpec

SPEC = {"x": TensorSpec("int64", ("batch",))}
MODEL = BatchModel("m", SPEC, SPEC, 0)
LONE = BatchModel("lone", SPEC, SPEC, None)
STEP_S = 0.1


def item(value: int) -> Item:
    return {"x": TensorData("int64", (1,), struct.pack("<q", value))}


def request(*values: int, model: str = "m", **changes: object) -> InferRequest:
    return InferRequest("r", model, [item(value) for value in values], **changes)  # type: ignore[arg-type]


class Copy:
    """A scheduler whose steps take so long, and its clock."""

    def __init__(self, max_rows: int = 2) -> None:
        self.now_s = 50.0
        self.scheduler = BatchScheduler(
            [MODEL, LONE], num_stages=1, max_rows=max_rows, max_tokens=1000, max_queued=1000
        )
        self.ended: list[Job] = []

    def add(self, given: InferRequest) -> Job:
        return self.scheduler.add(given, self.now_s)

    def run_step(self) -> list[int]:
        """The values of the next step's entries."""
        step = self.scheduler.schedule(self.now_s)
        self.now_s += STEP_S
        if step is None:
            return []
        self.ended += [one.job for one in self.scheduler.update(BatchStepOutput(step.step_id, step.inputs), self.now_s)]
        return values_of(step)


def values_of(step: BatchStep) -> list[int]:
    data = step.inputs["x"].data
    return list(struct.unpack(f"<{len(data) // 8}q", data))


def test_the_lowest_number_comes_first_and_a_step_is_filled_up_with_others() -> None:
    copy = Copy()
    copy.add(request(90, 91, 92, priority=9))
    copy.add(request(1, 2, 3))
    copy.add(request(0, priority=-1))
    assert [copy.run_step() for _ in range(4)] == [[0, 1], [2, 3], [90, 91], [92]]
    copy.scheduler.check()


def test_what_cannot_be_joined_waits_for_its_own_turn() -> None:
    copy = Copy()
    copy.add(request(90, model="lone", priority=9))
    copy.add(request(1, 2, 3))
    assert [copy.run_step() for _ in range(3)] == [[1, 2], [3], [90]]


def test_one_of_so_many_steps_begins_with_those_that_wait_behind() -> None:
    copy = Copy(max_rows=1)
    for value in (900, 901):
        copy.add(request(value, priority=9))
    copy.add(request(500, priority=5))
    steps = []
    for value in range(3 * TURNS):
        copy.add(request(value))
        steps += copy.run_step()
    late = {value: index for index, value in enumerate(steps) if value >= 500}
    assert late == {900: TURNS - 1, 901: 2 * TURNS - 1, 500: 3 * TURNS - 1}


def test_a_request_whose_time_has_passed_is_in_no_step() -> None:
    copy = Copy()
    copy.add(request(1, 2))
    late, other = copy.add(request(3, 4, 5, time_left_s=1.5 * STEP_S)), copy.add(request(6))
    assert [copy.run_step() for _ in range(4)] == [[1, 2], [3, 4], [6], []]
    assert (late.is_over, other.is_over) == (True, True)
    assert late not in copy.ended
    assert other in copy.ended
    assert copy.scheduler.num_waiting == 0
    copy.scheduler.check()


def measured_copy() -> Copy:
    copy = Copy()
    for value in range(10):
        copy.add(request(value, value))
        copy.run_step()
    return copy


def test_a_request_that_cannot_be_in_time_is_refused_with_both_numbers() -> None:
    copy = measured_copy()
    for value in range(20):
        copy.add(request(value))
    with pytest.raises(QueueFullError, match=r"needs about 1 s in the queue, and has 0\.5 s") as refused:
        copy.add(request(1, time_left_s=0.5))
    assert refused.value.retry_after_s == pytest.approx(0.5)
    copy.add(request(1, time_left_s=1.2))
    copy.add(request(1, time_left_s=0.05, priority=-1))
    with pytest.raises(QueueFullError, match=r"needs about 1\.1 s"):
        copy.add(request(1, time_left_s=0.5, priority=1))


def test_what_waits_beside_a_newcomer_takes_turns_with_it() -> None:
    copy = measured_copy()
    for value in range(5):
        copy.add(request(value, model="lone"))
    with pytest.raises(QueueFullError, match=r"needs about 0\.5 s"):
        copy.add(request(1, time_left_s=0.3))
    copy.add(request(1, time_left_s=0.55))


def test_entries_of_requests_that_have_ended_are_no_wait() -> None:
    copy = measured_copy()
    jobs = [copy.add(request(value)) for value in range(20)]
    for job in jobs:
        copy.scheduler.cancel(job)
    copy.add(request(1, time_left_s=0.05))
    assert copy.run_step() == [1]


def test_nothing_is_refused_before_anything_was_measured() -> None:
    copy = Copy()
    for value in range(100):
        copy.add(request(value, time_left_s=0.001))
    assert copy.scheduler.num_waiting == 100
