"""A step that gave no numbers: its sequences end, and what it was to write is found by nobody."""

from serve_app.scheduling.output import SequenceOutput
from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepInput, StepOutput
from tests.scheduler_driver import answered, request_of, scheduled, scheduler_of


def failed(scheduler: Scheduler, step: StepInput) -> list[SequenceOutput]:
    return scheduler.update(StepOutput(step.step_id, [], error="no memory"))


def test_every_sequence_of_the_step_ends_with_its_error_and_the_rest_go_on() -> None:
    scheduler = scheduler_of(budget=20)
    decoding, chunk, waiting = (scheduler.add(request_of(count, seed=count))[0] for count in (4, 50, 5))
    answered(scheduler, scheduled(scheduler))
    step = scheduled(scheduler)
    assert step.samples == [True, False], "one decodes, one is a chunk of a prompt"
    news = failed(scheduler, step)
    assert [(one.sequence, one.chunk.finish_reason, one.chunk.error) for one in news] == [
        (decoding, "error", "no memory"),
        (chunk, "error", "no memory"),
    ]
    assert [(one.chunk.first_index, one.chunk.token_ids) for one in news] == [(1, []), (0, [])]
    scheduler.check()
    assert scheduler.num_free_blocks == scheduler.limits.num_blocks
    answered(scheduler, scheduled(scheduler))
    assert (waiting.num_outputs, waiting.is_finished) == (1, False)


def test_a_prefix_that_a_failed_step_was_to_fill_is_computed_again() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(12))
    failed(scheduler, scheduled(scheduler))
    scheduler.add(request_of(12, seed=2))
    assert scheduled(scheduler).num_computed == [0]


def test_a_client_that_left_while_the_step_ran_leaves_no_prefix_either() -> None:
    scheduler = scheduler_of()
    (sequence,) = scheduler.add(request_of(12))
    step = scheduled(scheduler)
    scheduler.abort(sequence)
    scheduler.check()
    assert failed(scheduler, step) == []
    scheduler.check()
    scheduler.add(request_of(12, seed=2))
    assert scheduled(scheduler).num_computed == [0]


def test_what_earlier_steps_have_computed_for_others_is_still_found() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(12, params=SamplingParams(max_tokens=1, seed=1)))
    answered(scheduler, scheduled(scheduler))
    other = request_of(9, seed=2)
    other.prompt_token_ids[:] = [50 + index for index in range(9)]
    scheduler.add(other)
    failed(scheduler, scheduled(scheduler))
    scheduler.add(request_of(12, seed=3))
    assert scheduled(scheduler).num_computed == [8]
    scheduler.check()


def test_a_block_that_the_step_after_fills_from_what_failed_is_lost_too_whoever_left() -> None:
    limits = EngineLimits(max_num_seqs=2, max_num_batched_tokens=2, max_model_len=64, block_size=4, num_blocks=32)
    for is_gone in (False, True):
        scheduler = Scheduler(limits, num_stages=1, max_queued=8, overlaps_steps=True)
        (sequence,) = scheduler.add(request_of(8))
        first, second = scheduled(scheduler), scheduled(scheduler)
        assert (first.num_computed, second.num_computed) == ([0], [2]), "the second ends the block that the first began"
        if is_gone:
            scheduler.abort(sequence)
        assert len(failed(scheduler, first)) == (0 if is_gone else 1)
        assert answered(scheduler, second) == []
        scheduler.add(request_of(8, seed=2))
        assert scheduled(scheduler).num_computed == [0]
        scheduler.check()


def test_a_sequence_that_found_a_block_of_a_failed_one_ends_and_others_of_its_step_go_on() -> None:
    limits = EngineLimits(max_num_seqs=4, max_num_batched_tokens=12, max_model_len=64, block_size=4, num_blocks=32)
    scheduler = Scheduler(limits, num_stages=1, max_queued=8, overlaps_steps=True)
    (first,) = scheduler.add(request_of(12))
    step = scheduled(scheduler)
    (reader,) = scheduler.add(request_of(10, seed=2))
    other = request_of(6, seed=3)
    other.prompt_token_ids[:] = [90 + index for index in range(6)]
    (stranger,) = scheduler.add(other)
    beside = scheduled(scheduler)
    assert beside.num_computed[-2:] == [8, 0], "one goes on from what the first has, one has its own"
    news = failed(scheduler, step)
    assert [one.sequence for one in news] == [first, reader]
    answered(scheduler, beside)
    assert (stranger.is_finished, stranger.num_outputs) == (False, 1)
    scheduler.check()
