"""Why a sequence ends, and what travels with its tokens."""

from serve_app.types.generation import SamplingParams
from serve_app.types.steps import StepOutput
from tests.fakes_engine import CacheOracle, FakeModel, logprob_at
from tests.scheduler_driver import EOS, chunks_of, ends, request_of, scheduled, scheduler_of

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
