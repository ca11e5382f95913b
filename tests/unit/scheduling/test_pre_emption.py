"""Who goes when blocks run out, and how it goes on."""

from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.steps import StepInput
from tests.scheduler_driver import answered, request_of, scheduled, scheduler_of


def run_out_of_blocks(*waiting: GenerateRequest) -> tuple[Scheduler, StepInput]:
    """Two sequences in a cache of 4 blocks; the step in which a third block each is due."""
    scheduler = scheduler_of(num_blocks=4, max_model_len=16)
    for seed in (1, 2):
        params = SamplingParams(max_tokens=9, seed=seed, presence_penalty=1.0)
        scheduler.add(request_of(3 if seed == 1 else 4, params=params))
        answered(scheduler, scheduled(scheduler))
    for request in waiting:
        scheduler.add(request)
    while scheduler.num_preemptions == 0:
        step = scheduled(scheduler)
        if scheduler.num_preemptions == 0:
            answered(scheduler, step)
    return scheduler, step


def test_the_latest_sequence_is_pre_empted_when_blocks_run_out() -> None:
    scheduler, step = run_out_of_blocks()
    assert step.num_tokens == [1]
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    scheduler.check()


def test_the_first_to_come_waits_for_no_one_and_is_never_pre_empted() -> None:
    scheduler = scheduler_of(num_blocks=6, max_model_len=24)
    sequences = [scheduler.add(request_of(2, params=SamplingParams(max_tokens=22, seed=seed)))[0] for seed in (1, 2, 3)]
    steps_of_first = 0
    while not sequences[0].is_finished:
        steps_of_first += 1
        answered(scheduler, scheduled(scheduler))
    assert steps_of_first == 22
    assert [sequence.num_preemptions > 0 for sequence in sequences] == [False, True, True]


def test_a_pre_empted_sequence_starts_again_with_all_its_tokens_and_goes_on_counting() -> None:
    scheduler, step = run_out_of_blocks()
    answered(scheduler, step)
    while not (step := scheduled(scheduler)).starts:
        answered(scheduler, step)
    (start,) = step.starts
    assert start.params.seed == 2
    assert start.history_token_ids == [10, 11, 12, 13] + [7] * start.num_outputs
    assert start.num_history_prompt_tokens == 4
    assert start.num_outputs >= 4
    (num_found,) = step.num_computed  # its own blocks, as far as nobody has needed them since
    assert step.token_ids == start.history_token_ids[num_found:]
    (output,) = answered(scheduler, step)
    assert output.chunk.first_index == start.num_outputs


def test_a_pre_empted_sequence_comes_before_those_that_wait() -> None:
    scheduler, step = run_out_of_blocks(request_of(12, seed=3))
    assert scheduler.num_waiting == 2
    started: list[int] = []
    while scheduler.has_work:
        answered(scheduler, step)
        if (following := scheduler.schedule()) is None:
            break
        step = following
        started += [start.params.seed for start in step.starts]
    assert started == [2, 3]


def test_a_sequence_that_a_step_still_computes_is_not_pre_empted() -> None:
    scheduler = scheduler_of(num_stages=2, num_blocks=4, max_model_len=16)
    (first,) = scheduler.add(request_of(3, seed=1))
    in_flight = [scheduled(scheduler)]
    (second,) = scheduler.add(request_of(3, seed=2))
    has_waited = False
    while True:
        is_held = second.num_steps_in_flight > 0
        step = scheduler.schedule()
        if scheduler.num_preemptions:
            break
        has_waited |= is_held and first.num_steps_in_flight == 0  # for a block, until the other's step is back
        if step is not None:
            in_flight.append(step)
        else:
            answered(scheduler, in_flight.pop(0))
    assert has_waited
    assert not is_held
    assert (second.num_preemptions, second.slot_row) == (1, -1)
