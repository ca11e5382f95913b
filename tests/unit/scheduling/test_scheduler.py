"""What each step computes, request by request."""

from dataclasses import replace

import pytest

from serve_app.errors import QueueFullError, RequestError
from serve_app.scheduling.scheduler import Scheduler, SequenceOutput
from serve_app.types.generation import FinishReason, GenerateRequest, OutputChunk, SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepInput, StepOutput
from tests.fakes_engine import CacheOracle, FakeModel, logprob_at, run_alone

EOS = 2


def scheduler_of(
    *,
    num_stages: int = 1,
    max_num_seqs: int = 8,
    budget: int = 64,
    max_model_len: int = 64,
    num_blocks: int = 64,
    max_queued: int = 16,
) -> Scheduler:
    limits = EngineLimits(max_num_seqs, budget, max_model_len, block_size=4, num_blocks=num_blocks)
    return Scheduler(limits, num_stages=num_stages, max_queued=max_queued, eos_token_ids=frozenset({EOS}))


def request_of(
    num_tokens: int, *, seed: int = 1, num_choices: int = 1, params: SamplingParams | None = None
) -> GenerateRequest:
    params = params or SamplingParams(max_tokens=32, seed=seed)
    return GenerateRequest(f"request-{seed}", [10 + index for index in range(num_tokens)], params, num_choices)


def scheduled(scheduler: Scheduler) -> StepInput:
    step = scheduler.schedule()
    assert step is not None
    return step


def answered(scheduler: Scheduler, step: StepInput, token_id: int = 7) -> list[SequenceOutput]:
    """Every draw of the step gives the same token."""
    return scheduler.update(StepOutput(step.step_id, [token_id] * sum(step.samples)))


def chunks_of(scheduler: Scheduler, tokens: list[int]) -> list[OutputChunk]:
    """Run the only sequence with these draws, until it ends or they do."""
    chunks: list[OutputChunk] = []
    for token_id in tokens:
        if not scheduler.has_work:
            break
        chunks += [output.chunk for output in answered(scheduler, scheduled(scheduler), token_id)]
    return chunks


def ends(params: SamplingParams, tokens: list[int], **limits: int) -> tuple[int, FinishReason | None, int | None]:
    """Outputs of a request of three prompt tokens, why it ended, and the token that stopped it."""
    scheduler = scheduler_of(**limits)
    scheduler.add(request_of(3, params=params))
    chunks = chunks_of(scheduler, tokens)
    assert scheduler.has_work == (chunks[-1].finish_reason is None)
    assert [chunk.first_index for chunk in chunks] == list(range(len(chunks)))
    return sum(len(chunk.token_ids) for chunk in chunks), chunks[-1].finish_reason, chunks[-1].stop_token_id


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


# Pre-emption


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


# Ends


def test_the_model_s_end_token_stops() -> None:
    assert ends(SamplingParams(max_tokens=9, seed=1), [7, 7, EOS]) == (3, "stop", EOS)


def test_ignore_eos_goes_on_past_the_model_s_end_token_but_not_past_the_request_s_own() -> None:
    params = SamplingParams(max_tokens=9, seed=1, ignore_eos=True, stop_token_ids=(8,))
    assert ends(params, [EOS, 7, 8]) == (3, "stop", 8)


def test_a_stop_token_of_the_request_stops_beside_the_model_s() -> None:
    params = SamplingParams(max_tokens=9, seed=1, stop_token_ids=(8, 9))
    assert ends(params, [7, 9]) == (2, "stop", 9)
    assert ends(params, [EOS]) == (1, "stop", EOS)


def test_an_end_token_below_min_tokens_does_not_stop() -> None:
    params = SamplingParams(max_tokens=9, seed=1, min_tokens=3)
    assert ends(params, [EOS, EOS]) == (2, None, None)
    assert ends(params, [7, 7, EOS]) == (3, "stop", EOS)


def test_max_tokens_ends_with_length() -> None:
    assert ends(SamplingParams(max_tokens=2, seed=1), [7, 7, 7]) == (2, "length", None)


def test_an_end_token_that_is_the_last_allowed_one_counts_as_stop() -> None:
    assert ends(SamplingParams(max_tokens=2, seed=1), [7, EOS]) == (2, "stop", EOS)


def test_a_full_context_ends_with_length() -> None:
    assert ends(SamplingParams(max_tokens=99, seed=1), [7] * 20, max_model_len=8) == (5, "length", None)


def test_a_full_cache_ends_with_length() -> None:
    assert ends(SamplingParams(max_tokens=99, seed=1), [7] * 20, num_blocks=2) == (5, "length", None)


def test_logits_that_are_not_finite_end_with_error_and_no_token() -> None:
    scheduler = scheduler_of()
    (sequence,) = scheduler.add(request_of(3))
    chunks = chunks_of(scheduler, [7, -1])
    assert (chunks[-1].token_ids, chunks[-1].first_index, chunks[-1].finish_reason) == ([], 1, "error")
    assert sequence.num_outputs == 1
    assert not scheduler.has_work
    scheduler.check()


def test_end_tokens_travel_with_the_start_so_that_the_sampler_can_hold_them_back() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(3, params=SamplingParams(max_tokens=9, seed=1, min_tokens=3, stop_token_ids=(9, 1))))
    (start,) = scheduled(scheduler).starts
    assert start.end_token_ids == [1, EOS, 9]


def test_the_history_travels_only_for_penalties() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(2, params=SamplingParams(max_tokens=9, seed=1)))
    scheduler.add(request_of(2, params=SamplingParams(max_tokens=9, seed=2, frequency_penalty=0.5)))
    starts = scheduled(scheduler).starts
    assert [(start.history_token_ids, start.num_history_prompt_tokens) for start in starts] == [([], 0), ([10, 11], 2)]


# Log-probabilities


def test_logprobs_go_to_the_sequences_they_belong_to() -> None:
    scheduler = scheduler_of()
    for seed in (1, 2):
        scheduler.add(request_of(3, params=SamplingParams(max_tokens=9, seed=seed, num_logprobs=seed - 1 or None)))
    step = scheduled(scheduler)
    outputs = scheduler.update(StepOutput(step.step_id, [21, 22], [None, logprob_at(22, 3)]))
    assert [output.chunk.logprobs for output in outputs] == [None, [logprob_at(22, 3)]]


def test_prompt_logprobs_come_chunk_by_chunk_each_position_once() -> None:
    scheduler = scheduler_of(budget=4)
    params = SamplingParams(max_tokens=2, seed=1, num_prompt_logprobs=0)
    scheduler.add(request_of(9, params=params))
    oracle = CacheOracle(scheduler.limits, FakeModel())
    pieces = []
    while (step := scheduler.schedule()) is not None:
        pieces += [output.chunk.prompt_logprobs for output in scheduler.update(oracle.run(step))]
    assert [len(piece or []) for piece in pieces] == [4, 4, 0, 0]
    got = [entry for piece in pieces for entry in piece or []]
    assert got == [logprob_at(10 + position, position) for position in range(1, 9)]


def test_only_the_first_choice_carries_the_prompt_s_logprobs() -> None:
    scheduler = scheduler_of()
    params = SamplingParams(max_tokens=2, seed=1, num_prompt_logprobs=3)
    scheduler.add(request_of(4, num_choices=2, params=params))
    targets = scheduled(scheduler).prompt_targets
    assert {index: (one.token_ids, one.num_top) for index, one in targets.items()} == {0: ([11, 12, 13], 3)}


def test_prompt_logprobs_go_on_inside_a_chunk_after_a_pre_emption_in_the_midst_of_a_prompt() -> None:
    scheduler = scheduler_of(budget=2, num_blocks=4, max_model_len=20)
    scheduler.add(request_of(3, params=SamplingParams(max_tokens=9, seed=1, ignore_eos=True)))
    oracle = CacheOracle(scheduler.limits, FakeModel())
    for _ in range(2):
        scheduler.update(oracle.run(scheduled(scheduler)))
    params = SamplingParams(max_tokens=1, seed=2, num_prompt_logprobs=0)
    (second,) = scheduler.add(request_of(8, params=params))  # one token a step beside the first, two when alone
    offsets = []
    got = []
    while (step := scheduler.schedule()) is not None:
        offsets += [targets.offset for targets in step.prompt_targets.values()]
        for output in scheduler.update(oracle.run(step)):
            got += output.chunk.prompt_logprobs or []
    assert second.num_preemptions == 1
    assert max(offsets) == 1
    assert got == [logprob_at(10 + position, position) for position in range(1, 8)]


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


# The prefix cache: a prompt that begins as another did


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
