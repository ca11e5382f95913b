"""A prompt that begins as another did."""

from dataclasses import replace

from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.steps import StepInput, StepOutput
from tests.scheduler_driver import answered, request_of, scheduled, scheduler_of


def run_to_end(scheduler: Scheduler) -> list[StepInput]:
    steps = []
    while scheduler.has_work:
        steps.append(scheduled(scheduler))
        answered(scheduler, steps[-1])
    return steps


def started_with(scheduler: Scheduler, request: GenerateRequest) -> int:
    """Tokens of a prompt that are in the cache when it starts."""
    (sequence,) = scheduler.add(request)
    step = scheduled(scheduler)
    answered(scheduler, step)
    scheduler.abort(sequence)
    return step.num_computed[0]


def cached(request: GenerateRequest, salt: str) -> GenerateRequest:
    return replace(request, cache_salt=salt)


def test_a_prompt_is_computed_from_where_it_differs_and_its_last_token_always_is() -> None:
    scheduler = scheduler_of(num_blocks=32)
    scheduler.add(request_of(12, params=SamplingParams(max_tokens=2, seed=1)))
    run_to_end(scheduler)
    scheduler.check()
    assert started_with(scheduler, request_of(12)) == 8  # of three full blocks two: a token must be computed
    assert started_with(scheduler, request_of(13)) == 12
    assert started_with(scheduler, request_of(7)) == 4
    other = replace(request_of(12), prompt_token_ids=[10, 11, 12, 13, 99, 15, 16, 17, 18])
    assert started_with(scheduler, other) == 4
    scheduler.check()


def test_an_answer_is_found_by_the_conversation_that_goes_on() -> None:
    scheduler = scheduler_of(num_blocks=32)
    scheduler.add(request_of(6, params=SamplingParams(max_tokens=7, seed=1)))
    run_to_end(scheduler)
    history = [*request_of(6).prompt_token_ids, *[7] * 7, 40, 41]
    assert started_with(scheduler, replace(request_of(1), prompt_token_ids=history)) == 12  # but the last drawn token


def test_choices_share_their_prompt_in_one_step() -> None:
    scheduler = scheduler_of(num_blocks=64)
    scheduler.add(request_of(18, num_choices=8))
    step = scheduled(scheduler)
    assert step.num_computed == [0] + [16] * 7
    assert step.num_tokens == [18] + [2] * 7
    assert scheduler.num_free_blocks == 64 - 4 - 8
    (first, *others) = answered(scheduler, step)
    assert first.chunk.num_cached_tokens == 0
    assert {other.chunk.num_cached_tokens for other in others} == {16}
    scheduler.check()


def test_nothing_is_shared_over_salts_with_prompt_logprobs_or_where_it_is_off() -> None:
    scheduler = scheduler_of(num_blocks=32)
    scheduler.add(cached(request_of(12, params=SamplingParams(max_tokens=1, seed=1)), "ann"))
    run_to_end(scheduler)
    assert started_with(scheduler, cached(request_of(12), "ben")) == 0
    assert started_with(scheduler, request_of(12)) == 0
    assert started_with(scheduler, cached(request_of(12), "ann")) == 8
    asks = SamplingParams(max_tokens=1, seed=1, num_prompt_logprobs=0)
    assert started_with(scheduler, cached(request_of(12, params=asks), "ann")) == 0
    limits = replace(scheduler.limits)
    off = Scheduler(limits, num_stages=1, max_queued=8, has_prefix_cache=False)
    for _ in range(2):
        assert started_with(off, request_of(12)) == 0


def test_what_a_sequence_that_failed_has_computed_is_not_used_again() -> None:
    scheduler = scheduler_of(num_blocks=32)
    scheduler.add(request_of(12))
    step = scheduled(scheduler)
    scheduler.update(StepOutput(step.step_id, [-1]))
    assert started_with(scheduler, request_of(12)) == 0


def test_kept_prefixes_give_way_to_sequences_that_need_the_memory() -> None:
    scheduler = scheduler_of(num_blocks=6)
    for seed in range(5):
        prompt = [100 * seed + index for index in range(16)]
        scheduler.add(replace(request_of(1, params=SamplingParams(max_tokens=4, seed=1)), prompt_token_ids=prompt))
        run_to_end(scheduler)
        scheduler.check()
        assert scheduler.num_free_blocks == 6
    assert scheduler.num_preemptions == 0
