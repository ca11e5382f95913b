"""A step is sent before the tokens of the one before are back, and takes them unseen."""

from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import DRAWN_BEFORE, StepInput
from tests.scheduler_driver import EOS, answered, request_of, scheduled


def scheduler_of() -> Scheduler:
    limits = EngineLimits(8, 64, 64, block_size=4, num_blocks=64)
    return Scheduler(limits, num_stages=1, max_queued=16, eos_token_ids=frozenset({EOS}), overlaps_steps=True)


def columns(step: StepInput) -> tuple[list[int], list[int], list[bool]]:
    return step.token_ids, step.num_computed, step.samples


def test_the_next_step_takes_the_token_that_is_being_drawn() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(3))
    first, second = scheduled(scheduler), scheduled(scheduler)
    assert columns(first) == ([10, 11, 12], [0], [True])
    assert columns(second) == ([DRAWN_BEFORE], [3], [True])
    assert scheduler.schedule() is None, "two are in flight"
    (news,) = answered(scheduler, first, 7)
    assert news.token_id == 7
    third = scheduled(scheduler)
    assert columns(third) == ([DRAWN_BEFORE], [4], [True])


def test_a_stop_token_costs_one_step_and_nothing_of_it_is_seen() -> None:
    scheduler = scheduler_of()
    (sequence,) = scheduler.add(request_of(3))
    first, second = scheduled(scheduler), scheduled(scheduler)
    (news,) = answered(scheduler, first, EOS)
    assert news.chunk.finish_reason == "stop"
    assert scheduler.schedule() is None
    assert answered(scheduler, second, 9) == []
    assert sequence.token_ids == [10, 11, 12, EOS]
    scheduler.check()
    assert scheduler.num_free_blocks == 64


def test_a_sequence_whose_last_token_is_being_drawn_is_in_no_further_step() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(3, params=SamplingParams(max_tokens=2, seed=1)))
    first, second = scheduled(scheduler), scheduled(scheduler)
    answered(scheduler, first, 7)
    assert scheduler.schedule() is None, "its second and last token is on its way"
    (news,) = answered(scheduler, second, 8)
    assert news.chunk.finish_reason == "length"


def test_a_sequence_at_the_longest_is_in_no_further_step() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(63))
    scheduled(scheduler)
    assert scheduler.schedule() is None, "the token that is being drawn is the last that fits"


def test_a_newcomer_joins_the_step_behind_those_in_flight() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(3))
    first, _second = scheduled(scheduler), scheduled(scheduler)
    scheduler.add(request_of(2, seed=2))
    answered(scheduler, first, 7)
    third = scheduled(scheduler)
    assert columns(third) == ([DRAWN_BEFORE, 10, 11], [4, 0], [True, True])


def test_blocks_are_found_by_others_once_their_tokens_are_known() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(6))
    first, second = scheduled(scheduler), scheduled(scheduler)
    answered(scheduler, first, 7)
    third = scheduled(scheduler)  # its token is the ninth: the second block is full, and its last token was not known
    answered(scheduler, second, 8)
    scheduled(scheduler)
    answered(scheduler, third, 9)
    again = request_of(6, seed=2)
    again.prompt_token_ids.extend([7, 8, 9, 9])
    (sequence,) = scheduler.add(again)
    scheduled(scheduler)
    assert sequence.num_cached_tokens == 8
