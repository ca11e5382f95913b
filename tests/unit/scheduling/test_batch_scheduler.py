"""Dynamic batching: which entries share a step, in which order, and what becomes of them."""

import struct
from dataclasses import replace

import pytest

from serve_app.errors import InternalError, QueueFullError, ShardLostError
from serve_app.scheduling.batch_scheduler import BatchModel, BatchScheduler
from serve_app.scheduling.jobs import Job, JobResult
from serve_app.types.steps import BatchStep, BatchStepOutput
from serve_app.types.tensors import InferRequest, InferResult, Item, TensorData, TensorSpec

TEXT = BatchModel(
    "text",
    {"input_ids": TensorSpec("int64", ("tokens",)), "lengths": TensorSpec("int64", ("batch",))},
    {"sums": TensorSpec("int64", ("batch", 1))},
    0,
)
COLUMNS = BatchModel("columns", {"x": TensorSpec("int64", (2, "batch"))}, {"y": TensorSpec("int64", (2, "batch"))}, 1)
LONE = BatchModel("lone", {"x": TensorSpec("int64", (2,))}, {"y": TensorSpec("int64", (2,))}, None)


def integers(values: list[int], *shape: int) -> TensorData:
    return TensorData("int64", shape or (len(values),), struct.pack(f"<{len(values)}q", *values))


def values_of(tensor: TensorData) -> list[int]:
    return list(struct.unpack(f"<{len(tensor.data) // 8}q", tensor.data))


def text(*token_ids: int) -> Item:
    return {"input_ids": integers(list(token_ids)), "lengths": integers([len(token_ids)])}


def scheduler_of(*models: BatchModel, num_stages: int = 1, max_rows: int = 4, max_tokens: int = 10) -> BatchScheduler:
    return BatchScheduler(
        list(models) or [TEXT], num_stages=num_stages, max_rows=max_rows, max_tokens=max_tokens, max_queued=8
    )


def request(*items: Item, model: str = "text") -> InferRequest:
    return InferRequest("r", model, list(items))


def step_of(scheduler: BatchScheduler) -> BatchStep:
    step = scheduler.schedule()
    assert step is not None
    return step


def run(step: BatchStep) -> BatchStepOutput:
    """What a model does that adds up each text's tokens, and returns other inputs as they are."""
    if "x" in step.inputs:
        return BatchStepOutput(step.step_id, {"y": step.inputs["x"]})
    tokens, sums = values_of(step.inputs["input_ids"]), []
    for length in values_of(step.inputs["lengths"]):
        sums.append(sum(tokens[:length]))
        tokens = tokens[length:]
    return BatchStepOutput(step.step_id, {"sums": integers(sums, len(sums), 1)})


def finish(scheduler: BatchScheduler) -> dict[Job, InferResult | Exception | None]:
    ended: dict[Job, InferResult | Exception | None] = {}
    while (step := scheduler.schedule()) is not None:
        for result in scheduler.update(run(step)):
            ended[result.job] = result.result or result.error
    scheduler.check()
    return ended


def sums_of(result: InferResult | Exception | None) -> list[int]:
    assert isinstance(result, InferResult)
    return [values_of(output["sums"])[0] for output in result.outputs]


def test_entries_of_several_requests_share_a_step_packed_without_padding() -> None:
    scheduler = scheduler_of()
    first, second = scheduler.add(request(text(1, 2), text(5))), scheduler.add(request(text(7, 8, 9)))
    step = step_of(scheduler)
    assert values_of(step.inputs["input_ids"]) == [1, 2, 5, 7, 8, 9]
    assert values_of(step.inputs["lengths"]) == [2, 1, 3]
    results = {result.job: result.result for result in scheduler.update(run(step))}
    assert (sums_of(results[first]), sums_of(results[second])) == ([3, 5], [24])


def test_a_step_holds_no_more_tokens_and_rows_than_allowed_and_order_is_kept() -> None:
    scheduler = scheduler_of(max_tokens=10, max_rows=3)
    job = scheduler.add(request(*[text(*[1] * length) for length in (6, 4, 1, 1, 1, 1, 30, 2)]))
    taken = []
    while (step := scheduler.schedule()) is not None:
        taken.append(values_of(step.inputs["lengths"]))
        ended = scheduler.update(run(step))
    assert taken == [[6, 4], [1, 1, 1], [1], [30], [2]]
    assert ended[0].job is job
    assert sums_of(ended[0].result) == [6, 4, 1, 1, 1, 1, 30, 2]


def test_one_step_per_stage_is_in_flight() -> None:
    scheduler = scheduler_of(num_stages=2, max_rows=1)
    scheduler.add(request(text(1), text(2), text(3)))
    steps = [step_of(scheduler), step_of(scheduler)]
    assert scheduler.schedule() is None
    scheduler.update(run(steps[0]))
    assert step_of(scheduler).step_id == 2


def test_models_take_turns() -> None:
    other = BatchModel("other", TEXT.inputs, TEXT.outputs, 0)
    scheduler = scheduler_of(TEXT, other, max_rows=1)
    for _ in range(2):
        scheduler.add(request(text(1), model="text"))
        scheduler.add(request(text(1), model="other"))
    order = []
    while (step := scheduler.schedule()) is not None:
        order.append(step.model)
        scheduler.update(run(step))
    assert order == [0, 1, 0, 1]


def test_joining_along_another_dimension_is_undone_for_the_outputs() -> None:
    scheduler = scheduler_of(COLUMNS)
    items: list[Item] = [{"x": integers([1, 2, 3, 4], 2, 2)}, {"x": integers([5, 6], 2, 1)}]
    job = scheduler.add(request(*items, model="columns"))
    step = step_of(scheduler)
    assert (step.inputs["x"].shape, values_of(step.inputs["x"])) == ((2, 3), [1, 2, 5, 3, 4, 6])
    (result,) = scheduler.update(run(step))
    assert result.job is job
    assert result.result is not None
    assert [output["y"] for output in result.result.outputs] == [item["x"] for item in items]


def test_entries_of_other_shapes_or_of_a_model_without_batching_are_alone() -> None:
    scheduler = scheduler_of(COLUMNS, LONE)
    scheduler.add(request({"x": integers([1, 2], 2, 1)}, {"x": integers([1, 2, 3], 3, 1)}, model="columns"))
    scheduler.add(request({"x": integers([1, 2])}, {"x": integers([3, 4])}, model="lone"))
    shapes = []
    while (step := scheduler.schedule()) is not None:
        shapes.append(step.inputs["x"].shape)
        scheduler.update(run(step))
    assert sorted(shapes) == [(2,), (2,), (2, 1), (3, 1)]


def test_steps_with_gradients_are_their_own_and_cut_by_their_own_outputs() -> None:
    scheduler = scheduler_of()
    plain = scheduler.add(request(text(1, 2)))
    paths = scheduler.add(replace(request(text(3), text(4, 5)), has_gradients=True))
    first = step_of(scheduler)
    assert not first.has_gradients
    assert values_of(first.inputs["input_ids"]) == [1, 2]
    assert [one.job for one in scheduler.update(run(first))] == [plain]
    second = step_of(scheduler)
    assert second.has_gradients
    assert values_of(second.inputs["input_ids"]) == [3, 4, 5]
    outputs = {"attributions": integers([30, 40, 50]), "value": integers([7, 8])}
    (ended,) = scheduler.update(BatchStepOutput(second.step_id, outputs))
    assert ended.job is paths
    assert ended.result is not None
    assert [values_of(one["attributions"]) for one in ended.result.outputs] == [[30], [40, 50]]
    assert [values_of(one["value"]) for one in ended.result.outputs] == [[7], [8]]


def test_only_the_culprit_of_a_failed_step_fails() -> None:
    scheduler = scheduler_of()
    good, bad = scheduler.add(request(text(1, 2))), scheduler.add(request(text(666)))
    ended: dict[Job, InferResult | Exception | None] = {}
    while (step := scheduler.schedule()) is not None:
        has_bad = 666 in values_of(step.inputs["input_ids"])
        output = BatchStepOutput(step.step_id, {}, "ValueError") if has_bad else run(step)
        ended |= {result.job: result.result or result.error for result in scheduler.update(output)}
    assert sums_of(ended[good]) == [3]
    assert isinstance(ended[bad], InternalError)
    assert "ValueError" in str(ended[bad])
    scheduler.check()


def test_outputs_that_cannot_be_cut_are_an_error_that_says_what_to_declare() -> None:
    broken = BatchModel("text", TEXT.inputs, {"sums": TensorSpec("int64", ("rows", 1))}, 0)
    scheduler = scheduler_of(broken)
    scheduler.add(request(text(1), text(2)))
    step = step_of(scheduler)
    assert scheduler.update(run(step)) == []  # run again one by one, where nothing needs to be cut
    assert {sums_of(result)[0] for result in finish(scheduler).values()} == {1}


def test_what_lost_shards_had_is_run_again_first_and_in_order() -> None:
    scheduler = scheduler_of(num_stages=2, max_rows=2)
    job = scheduler.add(request(*[text(number) for number in range(6)]))
    step_of(scheduler), step_of(scheduler)
    assert scheduler.lose_shards() == []
    for step_id in range(4):  # each alone, with nothing beside it: it may be what the shards died of
        step = step_of(scheduler)
        assert (step.step_id, values_of(step.inputs["input_ids"])) == (step_id, [step_id])
        assert scheduler.schedule() is None
        scheduler.update(run(step))
    assert values_of(step_of(scheduler).inputs["input_ids"]) == [4, 5]
    scheduler.lose_shards()
    assert sums_of(finish(scheduler)[job]) == list(range(6))


@pytest.mark.parametrize("num_stages", [1, 2])
def test_what_kills_shards_takes_nobody_with_it(num_stages: int) -> None:
    scheduler = scheduler_of(num_stages=num_stages, max_rows=4)
    before, killer, after = (scheduler.add(request(text(number), text(number))) for number in (1, 66, 3))
    by_job: dict[Job, JobResult] = {}
    while scheduler.has_work:
        steps = list(iter(scheduler.schedule, None))
        if any(66 in values_of(step.inputs["input_ids"]) for step in steps):
            results = scheduler.lose_shards()
        else:
            results = [result for step in steps for result in scheduler.update(run(step))]
        by_job.update({result.job: result for result in results})
    assert isinstance(by_job[killer].error, ShardLostError)
    assert sums_of(by_job[before].result) == [1, 1]
    assert sums_of(by_job[after].result) == [3, 3]


def test_a_request_that_was_in_flight_when_shards_died_twice_is_given_up() -> None:
    scheduler = scheduler_of(max_rows=1)
    killer, other = scheduler.add(request(text(1))), scheduler.add(request(text(2)))
    step_of(scheduler)
    assert scheduler.lose_shards() == []
    step_of(scheduler)
    (result,) = scheduler.lose_shards()
    assert result.job is killer
    assert isinstance(result.error, ShardLostError)
    assert sums_of(finish(scheduler)[other]) == [2]


def test_a_cancelled_request_leaves_nothing_behind() -> None:
    scheduler = scheduler_of(max_rows=1)
    gone = scheduler.add(request(text(1), text(2)))
    step = step_of(scheduler)
    scheduler.cancel(gone)
    scheduler.cancel(gone)
    assert scheduler.update(run(step)) == []
    assert scheduler.schedule() is None
    scheduler.check()
    assert not scheduler.has_work


def test_a_full_queue_refuses_and_the_next_request_fits_again() -> None:
    scheduler = scheduler_of()
    jobs = [scheduler.add(request(text(1))) for _ in range(8)]
    with pytest.raises(QueueFullError, match="max_queued=8"):
        scheduler.add(request(text(1)))
    assert set(finish(scheduler)) == set(jobs)
    scheduler.add(request(text(1)))
