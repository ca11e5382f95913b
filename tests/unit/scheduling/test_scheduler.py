"""What each step computes, request by request."""

from dataclasses import replace

import pytest

from serve_app.errors import QueueFullError, RequestError
from serve_app.types.generation import Progress, SamplingParams
from serve_app.types.steps import StepOutput
from tests.fakes_engine import CacheOracle, FakeModel, run_alone
from tests.scheduler_driver import EOS, answered, chunks_of, request_of, scheduled, scheduler_of

# Admission


def test_requests_start_in_the_order_in_which_they_came() -> None:
    scheduler = scheduler_of(max_num_seqs=2)
    for seed in (5, 3, 9):
        scheduler.add(request_of(4, seed=seed))
    step = scheduled(scheduler)
    assert [start.params.seed for start in step.starts] == [5, 3]
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)


def test_a_short_request_does_not_overtake_a_long_one_that_lacks_blocks() -> None:
    scheduler = scheduler_of(num_blocks=4, max_model_len=16)
    scheduler.add(request_of(8, seed=1))
    answered(scheduler, scheduled(scheduler))
    scheduler.add(request_of(12, seed=2))
    scheduler.add(request_of(1, seed=3))
    step = scheduled(scheduler)
    assert (step.starts, step.num_tokens) == ([], [1])


def test_what_the_head_of_the_queue_needs_is_told() -> None:
    scheduler = scheduler_of(max_num_seqs=2, num_blocks=4, max_model_len=16)
    told = [scheduler.waits_for]
    scheduler.add(request_of(8, seed=1))
    told.append(scheduler.waits_for)
    answered(scheduler, scheduled(scheduler))
    told.append(scheduler.waits_for)
    scheduler.add(request_of(12, seed=2))
    answered(scheduler, scheduled(scheduler))
    assert [*told, scheduler.waits_for] == ["", "step", "", "kv_cache"]
    full = scheduler_of(max_num_seqs=1)
    for seed in (1, 2):
        full.add(request_of(4, seed=seed))
    scheduled(full)
    assert full.waits_for == "sequences"
    tried = scheduler_of()
    tried.add(replace(request_of(4, seed=1), progress=Progress([[]], [False], is_suspect=True)))
    scheduled(tried)
    tried.add(request_of(4, seed=2))
    assert tried.waits_for == "trial"


def test_a_request_joins_beside_one_that_decodes_and_leaves_when_it_ends() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(5, seed=1))
    answered(scheduler, scheduled(scheduler))
    (short,) = scheduler.add(request_of(3, params=SamplingParams(max_tokens=1, seed=2)))
    step = scheduled(scheduler)
    assert (step.num_tokens, step.num_computed, step.samples) == ([1, 3], [5, 0], [True, True])
    assert step.token_ids == [7, 10, 11, 12]
    answered(scheduler, step)
    assert short.finish_reason == "length"
    assert scheduled(scheduler).num_tokens == [1]


def test_each_choice_is_a_sequence_of_its_own() -> None:
    scheduler = scheduler_of()
    sequences = scheduler.add(request_of(3, num_choices=3))
    step = scheduled(scheduler)
    assert [start.choice for start in step.starts] == [sequence.choice for sequence in sequences] == [0, 1, 2]
    assert len(set(step.slot_rows)) == 3
    assert len({block for blocks in step.new_blocks for block in blocks}) == 3


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    scheduler = scheduler_of(max_queued=3)
    scheduler.add(request_of(3, num_choices=2))
    with pytest.raises(QueueFullError, match=r"2 sequences wait and engine\.max_queued=3") as caught:
        scheduler.add(request_of(3, num_choices=2))
    assert caught.value.retry_after_s is not None
    assert scheduler.num_waiting == 2
    scheduler.add(request_of(3))
    scheduled(scheduler)  # all have left the queue
    scheduler.add(request_of(3, num_choices=3))


@pytest.mark.parametrize(
    ("max_model_len", "num_blocks", "most"), [(16, 64, 15), (64, 3, 11)], ids=["context", "KV cache"]
)
def test_a_prompt_that_never_fits_is_refused_and_the_longest_that_fits_runs(
    max_model_len: int, num_blocks: int, most: int
) -> None:
    scheduler = scheduler_of(max_model_len=max_model_len, num_blocks=num_blocks)
    with pytest.raises(RequestError, match=f"the prompt has {most + 1} tokens") as caught:
        scheduler.add(request_of(most + 1))
    assert caught.value.field == "prompt"
    assert not scheduler.has_work
    (sequence,) = scheduler.add(request_of(most))
    (chunk,) = chunks_of(scheduler, [7, 7])
    assert (chunk.token_ids, chunk.finish_reason) == ([7], "length")
    assert sequence.is_finished
    scheduler.check()


# Chunked prefill


def test_a_long_prompt_is_prefilled_in_chunks_and_drawn_from_after_the_last() -> None:
    scheduler = scheduler_of(budget=8)
    scheduler.add(request_of(20))
    seen = []
    for _ in range(3):
        step = scheduled(scheduler)
        seen.append((step.num_computed, step.num_tokens, step.samples))
        news = answered(scheduler, step)
    assert seen == [([0], [8], [False]), ([8], [8], [False]), ([16], [4], [True])]
    assert [output.chunk.token_ids for output in news] == [[7]]


def test_a_sequence_that_decodes_comes_before_the_chunk_of_a_long_prompt() -> None:
    scheduler = scheduler_of(budget=8)
    scheduler.add(request_of(3, seed=1))
    answered(scheduler, scheduled(scheduler))
    scheduler.add(request_of(30, seed=2))
    for _ in range(4):
        step = scheduled(scheduler)
        assert (step.num_tokens, step.samples) == ([1, 7], [True, False])
        answered(scheduler, step)
    step = scheduled(scheduler)
    assert (step.num_tokens, step.samples) == ([1, 2], [True, True])


def test_prompts_take_their_share_of_a_step_and_no_more_whoever_else_is_in_it() -> None:
    scheduler = scheduler_of(budget=16, prefill_budget=8)
    for seed in (1, 2, 3):
        scheduler.add(request_of(2, seed=seed))
    answered(scheduler, scheduled(scheduler))
    for seed in (4, 5, 6):
        scheduler.add(replace(request_of(7, seed=seed), cache_salt=str(seed)))
    steps = []
    for _ in range(4):
        step = scheduled(scheduler)
        steps.append(step.num_tokens)
        answered(scheduler, step)
    assert steps == [[1, 1, 1, 7, 1], [1, 1, 1, 1, 6, 2], [1, 1, 1, 1, 1, 5], [1, 1, 1, 1, 1, 1]]


def test_more_sequences_decode_in_a_step_than_prompts_may_have_tokens_in_it() -> None:
    scheduler = scheduler_of(prefill_budget=2)
    for seed in range(1, 7):
        scheduler.add(request_of(2, seed=seed))
    steps = []
    while scheduler.num_running < 6:
        step = scheduled(scheduler)
        steps.append(step.num_tokens)
        answered(scheduler, step)
    assert steps == [[*[1] * num_decoding, 2] for num_decoding in range(6)]
    assert scheduled(scheduler).num_tokens == [1] * 6


def test_chunks_of_one_prompt_follow_each_other_through_the_stages() -> None:
    scheduler = scheduler_of(num_stages=3, budget=8)
    scheduler.add(request_of(30))
    steps = [scheduled(scheduler) for _ in range(3)]
    assert [step.num_computed for step in steps] == [[0], [8], [16]]
    assert scheduler.schedule() is None
    for step in steps:
        assert answered(scheduler, step) == []
    assert scheduled(scheduler).samples == [True]


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_a_prompt_of_many_chunks_does_not_slow_those_that_decode(num_stages: int) -> None:
    scheduler = scheduler_of(num_stages=num_stages, budget=16, max_model_len=400, num_blocks=400)
    for seed in range(1, 6):
        scheduler.add(request_of(2, params=SamplingParams(max_tokens=1000, seed=seed, ignore_eos=True)))
    oracle = CacheOracle(scheduler.limits, FakeModel())
    on_the_way: list[StepOutput] = []
    last_seen: dict[tuple[int, int], int] = {}
    for turn in range(90):
        if turn == 30:
            scheduler.add(request_of(390, params=SamplingParams(max_tokens=1000, seed=6, ignore_eos=True)))
        while (step := scheduler.schedule()) is not None:
            on_the_way.append(oracle.run(step))
            for sequence, is_drawn in zip(oracle.sequences(step), step.samples, strict=True):
                if is_drawn and turn > 20:
                    assert step.step_id - last_seen.get(sequence, step.step_id) <= num_stages + 1
                last_seen[sequence] = step.step_id
        scheduler.update(on_the_way.pop(0))
    assert oracle.num_steps > 80


# Steps in flight


def test_sequences_are_spread_evenly_over_the_steps_in_flight() -> None:
    scheduler = scheduler_of(num_stages=3)
    scheduler.add(request_of(3, num_choices=7))
    answered(scheduler, scheduled(scheduler))  # all seven were admitted in one step
    steps = [scheduled(scheduler) for _ in range(3)]
    assert [len(step.slot_rows) for step in steps] == [3, 3, 1]
    assert sorted(row for step in steps for row in step.slot_rows) == list(range(7))
    assert scheduler.schedule() is None


def test_a_sequence_is_not_scheduled_while_its_draw_is_in_flight() -> None:
    scheduler = scheduler_of(num_stages=2)
    scheduler.add(request_of(3))
    step = scheduled(scheduler)
    assert scheduler.schedule() is None
    answered(scheduler, step)
    assert scheduled(scheduler).num_computed == [3]


def test_no_more_steps_are_in_flight_than_there_are_stages() -> None:
    scheduler = scheduler_of(num_stages=2)
    steps = []
    for seed in (1, 2, 3):
        scheduler.add(request_of(3, seed=seed))
        steps.append(scheduler.schedule())
    assert [step is not None for step in steps] == [True, True, False]
    assert scheduler.num_steps_in_flight == 2


def test_the_sequence_that_has_waited_longest_decodes_first() -> None:
    scheduler = scheduler_of(num_stages=2, max_num_seqs=3)
    scheduler.add(request_of(3, num_choices=3))
    answered(scheduler, scheduled(scheduler))
    first, second = scheduled(scheduler), scheduled(scheduler)
    assert [first.slot_rows, second.slot_rows] == [[0, 1], [2]]
    answered(scheduler, first)
    answered(scheduler, second)
    assert scheduled(scheduler).slot_rows == [0, 1]
    assert scheduled(scheduler).slot_rows == [2]


# Aborts


def test_an_abort_frees_blocks_and_row_at_once_while_its_step_is_in_flight() -> None:
    scheduler = scheduler_of(max_num_seqs=1, num_blocks=4)
    (sequence,) = scheduler.add(request_of(9, seed=1))
    step = scheduled(scheduler)
    assert scheduler.num_free_blocks == 1
    scheduler.abort(sequence)
    assert (scheduler.num_free_blocks, scheduler.num_running, sequence.finish_reason) == (4, 0, "abort")
    assert answered(scheduler, step) == []
    scheduler.add(request_of(9, seed=2))
    assert scheduled(scheduler).slot_rows == step.slot_rows
    scheduler.check()


def test_a_waiting_sequence_that_is_aborted_never_starts() -> None:
    scheduler = scheduler_of(max_num_seqs=1)
    scheduler.add(request_of(3, seed=1))
    (second,) = scheduler.add(request_of(3, seed=2))
    scheduler.abort(second)
    chunks_of(scheduler, [7] * 40)
    assert not scheduler.has_work
    assert scheduler.num_waiting == 0


def test_an_abort_after_the_end_changes_nothing() -> None:
    scheduler = scheduler_of()
    (sequence,) = scheduler.add(request_of(3))
    chunks_of(scheduler, [EOS])
    scheduler.abort(sequence)
    assert sequence.finish_reason == "stop"
    assert scheduler.num_free_blocks == 64
    scheduler.check()


def test_the_other_choices_go_on_when_one_is_aborted() -> None:
    scheduler = scheduler_of()
    sequences = scheduler.add(request_of(3, num_choices=3))
    step = scheduled(scheduler)
    scheduler.abort(sequences[1])
    outputs = scheduler.update(StepOutput(step.step_id, [21, 22, 23]))
    assert [(output.chunk.choice, output.chunk.token_ids) for output in outputs] == [(0, [21]), (2, [23])]


# Its own check


def test_a_lost_row_does_not_escape_the_check() -> None:
    scheduler = scheduler_of(max_num_seqs=2)
    (sequence,) = scheduler.add(request_of(3))
    scheduled(scheduler)
    scheduler.check()
    scheduler._running.remove(sequence)
    scheduler._blocks.release(sequence.block_table)
    with pytest.raises(AssertionError):
        scheduler.check()


def test_what_runs_alone_is_what_the_scheduler_gives() -> None:
    """The reference of the simulation against a plain run: their end rules are written twice."""
    scheduler = scheduler_of()
    request = request_of(5, params=SamplingParams(max_tokens=12, seed=4, min_tokens=2, stop_token_ids=(3, 5, 8)))
    (sequence,) = scheduler.add(request)
    oracle = CacheOracle(scheduler.limits, FakeModel())
    while (step := scheduler.schedule()) is not None:
        scheduler.update(oracle.run(step))
    reference = run_alone(FakeModel(), request, 0, scheduler.max_request_tokens, frozenset({EOS}))
    assert (sequence.token_ids[5:], sequence.finish_reason) == (reference.token_ids, reference.finish_reason)


def test_requests_that_can_never_run_are_refused_for_good() -> None:
    scheduler = scheduler_of(max_queued=3)
    with pytest.raises(RequestError, match="no token"):
        scheduler.add(request_of(0))
    with pytest.raises(RequestError, match=r"n=4 is more than engine\.max_queued=3"):
        scheduler.add(request_of(2, num_choices=4))
