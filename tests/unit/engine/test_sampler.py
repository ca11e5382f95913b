"""The sampler against plain references, and what a draw may depend on."""

import math
import random
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.engine.draws import uniforms
from serve_app.engine.sampler import SampledTokens, Sampler
from serve_app.types.generation import SamplingParams
from serve_app.types.steps import NOT_FINITE, SequenceStart
from tests.compiled import kernels_or_skip

VOCAB = 40
GREEDY = SamplingParams(max_tokens=64, seed=0, temperature=0.0)
RANDOM = SamplingParams(max_tokens=64, seed=0)


def start_of(row: int, params: SamplingParams, **changes: Any) -> SequenceStart:
    start = SequenceStart(
        slot_row=row,
        choice=0,
        params=params,
        end_token_ids=[],
        num_outputs=0,
        history_token_ids=[],
        num_history_prompt_tokens=0,
    )
    return replace(start, **changes)


def logits_of(num_rows: int, vocab_size: int = VOCAB, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def sample_one(params: SamplingParams, logits: Tensor, **changes: Any) -> SampledTokens:
    sampler = Sampler(1, logits.shape[1], "cpu")
    sampler.start(start_of(0, params, **changes))
    return sampler.sample(logits, [0])


def counts_of(params: SamplingParams, logits: Tensor, num_draws: int = 4000) -> list[int]:
    """How often each token is drawn from logits [V] by as many seeds."""
    sampler = Sampler(num_draws, len(logits), "cpu")
    for row in range(num_draws):
        sampler.start(start_of(row, replace(params, seed=row)))
    drawn = sampler.sample(logits.expand(num_draws, -1), list(range(num_draws))).token_ids
    return torch.tensor(drawn).bincount(minlength=len(logits)).tolist()


def reference_probabilities(params: SamplingParams, logits: Tensor) -> list[float]:
    """Temperature, then min_p, top_k and top_p, written the slow way."""
    probabilities = (logits.double() / params.temperature).softmax(-1).tolist()
    ranked = sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token))
    kept = [token for token in ranked if probabilities[token] >= params.min_p * probabilities[ranked[0]]]
    kept = kept[: params.top_k or len(kept)]
    mass = 0.0
    nucleus: list[int] = []
    total = sum(probabilities[token] for token in kept)
    for token in kept:
        if not nucleus or mass < params.top_p * total:
            nucleus.append(token)
        mass += probabilities[token]
    total = sum(probabilities[token] for token in nucleus)
    return [probabilities[token] / total if token in nucleus else 0.0 for token in range(len(probabilities))]


@pytest.mark.parametrize(
    "params",
    [
        RANDOM,
        replace(RANDOM, temperature=0.5),
        replace(RANDOM, temperature=3.0),
        replace(RANDOM, top_k=5),
        replace(RANDOM, top_p=0.7),
        replace(RANDOM, min_p=0.1),
        replace(RANDOM, temperature=1.7, top_k=12, top_p=0.9, min_p=0.02),
    ],
)
def test_draws_follow_the_distribution_that_the_parameters_describe(params: SamplingParams) -> None:
    logits = logits_of(1)[0]
    expected = reference_probabilities(params, logits)
    observed = counts_of(params, logits)
    assert all(count == 0 for count, probability in zip(observed, expected, strict=True) if probability == 0)
    bins = [(count, 4000 * p) for count, p in zip(observed, expected, strict=True) if 4000 * p >= 5]
    chi_square = sum((count - mean) ** 2 / mean for count, mean in bins)
    degrees = max(1, len(bins) - 1)
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)


def test_greedy_takes_the_best_token_and_the_lowest_id_of_equals() -> None:
    logits = torch.zeros(3, VOCAB)
    logits[1, [7, 9]] = 1.0
    logits[2, 39] = 0.5
    sampler = Sampler(4, VOCAB, "cpu")
    for row in range(3):
        sampler.start(start_of(row, replace(GREEDY, temperature=row * 1e-6)))
    assert sampler.sample(logits, [0, 1, 2]) == SampledTokens([0, 7, 39])
    assert sampler.sample(logits.bfloat16(), [0, 1, 2]).token_ids == [0, 7, 39]


def test_a_draw_is_the_same_alone_and_among_any_batch_mates() -> None:
    choices = [
        GREEDY,
        RANDOM,
        replace(RANDOM, top_k=7),
        replace(RANDOM, top_p=0.8),
        replace(RANDOM, min_p=0.05, temperature=1.5),
        replace(RANDOM, top_k=20, presence_penalty=1.0, repetition_penalty=1.2),
        replace(RANDOM, num_logprobs=3, logit_bias={3: 2.0}),
    ]
    shuffle = random.Random(0)
    rows = list(range(21))
    starts = [start_of(row, replace(choices[row % 7], seed=row), choice=row % 3) for row in rows]
    logits = [logits_of(21, seed=step) for step in range(6)]
    together, alone, later = (Sampler(21, VOCAB, "cpu") for _ in range(3))
    expected: dict[int, list[int]] = {row: [] for row in rows}
    for start in starts:
        together.start(start)
        alone.start(start)
    for step_logits in logits:
        shuffle.shuffle(rows)
        drawn = together.sample(step_logits[rows], rows).token_ids
        for row, token in zip(rows, drawn, strict=True):
            expected[row].append(token)
            assert alone.sample(step_logits[row : row + 1], [row]).token_ids == [token]
    for start in starts:  # as after a pre-emption or a restart, 4 tokens in, in another row
        row = start.slot_row
        moved = replace(start, slot_row=20 - row, num_outputs=4, history_token_ids=expected[row][:4])
        later.start(moved)
    for step in (4, 5):
        drawn = later.sample(logits[step], [20 - row for row in range(21)]).token_ids
        assert drawn == [expected[row][step] for row in range(21)]


def test_seeds_choices_and_positions_draw_independently() -> None:
    flat = torch.zeros(1, 1 << 14)
    drawn = set()
    for seed in (0, 1, 2**63, 2**64 - 1):
        for choice in range(4):
            sampler = Sampler(1, flat.shape[1], "cpu")
            sampler.start(start_of(0, replace(RANDOM, seed=seed), choice=choice))
            drawn |= {sampler.sample(flat, [0]).token_ids[0] for _ in range(16)}
    assert len(drawn) >= 250  # of 256: about two meet by chance in 16,384


def test_the_random_numbers_are_those_of_splitmix64() -> None:
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # the published generator, seed 0
    drawn = uniforms(torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert drawn.tolist() == [((value >> 12) + 0.5) / 2**52 for value in known]
    extremes = uniforms(torch.tensor([-1]).expand(10_000), torch.arange(10_000))
    assert 0 < extremes.min() < 0.001
    assert 0.999 < extremes.max() < 1
    assert abs(float(extremes.mean()) - 0.5) < 0.01


def test_penalties_equal_a_plain_reference() -> None:
    params = replace(GREEDY, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3)
    history = [1, 2, 2, 5, 6, 6, 6]  # 4 of the prompt
    sampler = Sampler(3, VOCAB, "cpu")
    sampler.start(start_of(2, params, num_outputs=3, history_token_ids=history, num_history_prompt_tokens=4))
    outputs = history[4:]
    for step in range(12):
        logits = logits_of(1, seed=step, scale=0.5)
        expected = logits[0].tolist()
        for token in set(history[:4]) | set(outputs):
            expected[token] = expected[token] / 1.3 if expected[token] > 0 else expected[token] * 1.3
        for token in set(outputs):
            expected[token] -= 0.4 + 0.3 * outputs.count(token)
        drawn = sampler.sample(logits, [2]).token_ids[0]
        assert drawn == max(range(VOCAB), key=lambda token: expected[token])
        outputs.append(drawn)
    assert len(set(outputs)) > 6


def test_a_row_forgets_what_it_held_before() -> None:
    busy = replace(RANDOM, top_k=3, frequency_penalty=2.0, logit_bias={4: 50.0}, min_tokens=9, num_logprobs=1)
    sampler = Sampler(2, VOCAB, "cpu")
    logits = logits_of(1)
    sampler.start(start_of(1, busy, end_token_ids=[3], history_token_ids=[int(logits.argmax())]))
    sampler.sample(logits, [1])
    sampler.start(start_of(1, GREEDY))
    assert sampler.sample(logits, [1]) == SampledTokens([int(logits.argmax())])


def test_end_tokens_wait_for_min_tokens() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [8, 9]] = torch.tensor([5.0, 4.0])
    sampler = Sampler(1, VOCAB, "cpu")
    params = replace(GREEDY, min_tokens=5)
    sampler.start(start_of(0, params, end_token_ids=[8, 9], num_outputs=2))
    assert [sampler.sample(logits, [0]).token_ids[0] for _ in range(5)] == [0, 0, 0, 8, 8]


@pytest.mark.parametrize("params", [GREEDY, RANDOM])
def test_logit_bias_forces_and_bans_tokens(params: SamplingParams) -> None:
    logits = logits_of(1)
    before = logits.clone()
    assert sample_one(replace(params, logit_bias={17: 100.0}), logits).token_ids == [17]
    allowed = replace(params, logit_bias={token: -100.0 for token in range(VOCAB) if token != 6})
    assert sample_one(allowed, logits).token_ids == [6]
    assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_without_finite_logits_gives_minus_one_and_harms_no_other(bad: float) -> None:
    choices = [
        GREEDY,
        RANDOM,
        replace(RANDOM, top_p=0.9),
        replace(RANDOM, top_k=4, frequency_penalty=1.0, num_logprobs=2),
    ]
    for broken in range(4):
        logits, outputs = logits_of(4), []
        for is_broken in (False, True):
            if is_broken:
                logits[broken, 11] = bad
            sampler = Sampler(4, VOCAB, "cpu")
            for row, params in enumerate(choices):
                sampler.start(start_of(row, params))
            outputs.append(sampler.sample(logits, [0, 1, 2, 3]))
        assert outputs[1].token_ids == [-1 if row == broken else outputs[0].token_ids[row] for row in range(4)]
        assert outputs[1].logprobs is not None
        assert (outputs[1].logprobs[3] is None) == (broken == 3)


def test_a_row_of_nothing_but_minus_infinity_gives_minus_one() -> None:
    for params in (GREEDY, RANDOM, replace(RANDOM, top_p=0.5, top_k=3), replace(RANDOM, min_p=0.5)):
        assert sample_one(params, torch.full((1, VOCAB), -math.inf)).token_ids == [-1]
        logits = torch.full((1, VOCAB), -math.inf)
        logits[0, 21] = -3.0
        assert sample_one(params, logits).token_ids == [21]
        suppressed = sample_one(replace(params, min_tokens=1), logits, end_token_ids=[21])
        assert suppressed.token_ids == [-1]


def test_logprobs_are_those_of_the_unmodified_logits() -> None:
    asking = replace(RANDOM, temperature=0.3, top_k=4, logit_bias={1: 3.0}, repetition_penalty=1.5, num_logprobs=5)
    logits = logits_of(3)
    sampler = Sampler(3, VOCAB, "cpu")
    for row, params in enumerate([GREEDY, asking, replace(GREEDY, num_logprobs=0)]):
        sampler.start(start_of(row, params))
    sampled = sampler.sample(logits, [2, 0, 1])
    reference = logits.log_softmax(-1)
    assert sampled.logprobs is not None
    assert sampled.logprobs[1] is None
    for b, num_top in ((0, 0), (2, 5)):
        entry, token = sampled.logprobs[b], sampled.token_ids[b]
        assert entry is not None
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(float(reference[b, token]), abs=1e-5)
        assert entry.rank == 1 + int((reference[b] > reference[b, token]).sum())
        best = reference[b].topk(num_top)
        assert entry.top_token_ids == best.indices.tolist()
        assert entry.top_logprobs == pytest.approx(best.values.tolist(), abs=1e-5)


def test_equal_logits_are_drawn_in_the_order_of_their_ids() -> None:
    drawn = counts_of(replace(RANDOM, top_k=3), torch.zeros(VOCAB), 200)
    assert min(drawn[:3]) > 0
    assert sum(drawn[3:]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "params",
    [
        replace(RANDOM, temperature=1e-3),
        replace(RANDOM, temperature=1e-5, top_k=50),
        replace(RANDOM, top_p=1e-9),
        replace(RANDOM, top_p=0.0),
        replace(RANDOM, top_k=1),
        replace(RANDOM, min_p=1.0),
    ],
)
def test_extreme_parameters_draw_the_best_token(params: SamplingParams, dtype: torch.dtype) -> None:
    logits = torch.full((1, 128_000), -1e30)
    logits[0, 5:60_000] = torch.linspace(-20, 20, 59_995)
    logits[0, 60_000:] = -math.inf
    logits[0, 99_999] = 25.0
    assert sample_one(params, logits.to(dtype)).token_ids == [99_999]


@pytest.mark.parametrize("params", [replace(RANDOM, top_p=0.99), replace(RANDOM, top_p=0.99, top_k=3000)])
def test_a_nucleus_beyond_the_first_candidates_is_drawn_from_whole(params: SamplingParams) -> None:
    lowest = int(torch.tensor(counts_of(params, torch.linspace(0, 0.5, 4096), 300)).nonzero().min())
    limit = 4096 - params.top_k if params.top_k else 0
    assert limit <= lowest < 4096 - 1024


def test_large_batches_are_drawn_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [counts_of(replace(RANDOM, top_k=top_k), logits_of(1)[0], 100) for top_k in (0, 9)]
    monkeypatch.setattr("serve_app.engine.draws._CHUNK_ELEMENTS", 7 * VOCAB)
    assert [counts_of(replace(RANDOM, top_k=top_k), logits_of(1)[0], 100) for top_k in (0, 9)] == whole


def test_greedy_costs_about_one_argmax() -> None:
    logits = logits_of(32, vocab_size=32_000)
    sampler = Sampler(32, 32_000, "cpu")
    for row in range(32):
        sampler.start(start_of(row, GREEDY))
    rows = list(range(32))
    sample_s, argmax_s = [], []
    for _ in range(7):
        began_s = time.perf_counter()
        sampler.sample(logits, rows)
        sample_s.append(time.perf_counter() - began_s)
        began_s = time.perf_counter()
        logits.max(dim=-1)
        argmax_s.append(time.perf_counter() - began_s)
    assert min(sample_s) < 3 * min(argmax_s) + 0.001


@pytest.mark.parametrize("params", [GREEDY, RANDOM, replace(RANDOM, top_p=0.9), replace(RANDOM, min_p=0.1)])
def test_only_allowed_tokens_are_drawn_and_neighbours_draw_freely(params: SamplingParams) -> None:
    allowed = (3, 9, 27)
    sampler = Sampler(2, VOCAB, "cpu")
    sampler.start(start_of(0, replace(params, allowed_token_ids=allowed, repetition_penalty=1.3, num_logprobs=1)))
    sampler.start(start_of(1, params))
    free = Sampler(1, VOCAB, "cpu")
    free.start(start_of(0, params))
    for seed in range(50):
        logits = logits_of(2, seed=seed)
        drawn = sampler.sample(logits, [0, 1])
        assert drawn.token_ids[0] in allowed
        assert drawn.token_ids[1] == free.sample(logits[1:], [0]).token_ids[0]
        assert drawn.logprobs is not None
        entry = drawn.logprobs[0]
        assert entry is not None
        assert entry.top_token_ids == [int(logits[0].argmax())]  # of the model's own logits


def test_named_tokens_are_the_alternatives_and_neighbours_have_their_top_ones() -> None:
    sampler = Sampler(3, VOCAB, "cpu")
    sampler.start(start_of(0, replace(GREEDY, num_logprobs=1)))
    sampler.start(start_of(1, replace(GREEDY, num_logprobs=0, logprob_token_ids=(30, 2, 11))))
    sampler.start(start_of(2, GREEDY))
    logits = logits_of(3)
    drawn = sampler.sample(logits, [2, 1, 0])
    assert drawn.logprobs is not None
    silent, named, top = drawn.logprobs
    assert silent is None
    assert named is not None
    assert top is not None
    expected = logits[1].log_softmax(-1)
    assert named.top_token_ids == [30, 2, 11]
    assert named.top_logprobs == pytest.approx([float(expected[one]) for one in (30, 2, 11)], abs=1e-5)
    assert named.logprob == pytest.approx(float(expected.max()), abs=1e-5)
    assert top.top_token_ids == [int(logits[2].argmax())]
    sampler.start(start_of(1, replace(GREEDY, num_logprobs=1)))
    again = sampler.sample(logits, [2, 1, 0]).logprobs
    assert again is not None
    assert again[1] is not None
    assert again[1].top_token_ids == [int(logits[1].argmax())]


def test_a_slot_row_forgets_what_its_sequence_was_allowed() -> None:
    sampler = Sampler(1, VOCAB, "cpu")
    sampler.start(start_of(0, replace(GREEDY, allowed_token_ids=(3,))))
    logits = logits_of(1)
    assert sampler.sample(logits, [0]).token_ids == [3]
    sampler.start(start_of(0, GREEDY))
    assert sampler.sample(logits, [0]).token_ids == [int(logits.argmax())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_kernels_draw_what_torch_draws(dtype: torch.dtype) -> None:
    logits = logits_of(5, 1000).to(dtype)
    logits[1, 300], logits[2, 300], logits[3] = torch.nan, torch.inf, -torch.inf
    logits[4, [70, 900]] = 50.0  # the lowest id of equals
    biased = replace(GREEDY, logit_bias={5: 100.0})
    expected = None
    for kernels in (None, kernels_or_skip()):
        sampler = Sampler(5, 1000, "cpu", kernels=kernels)
        for row in range(5):
            sampler.start(start_of(row, GREEDY))
        drawn = sampler.sample(logits, list(range(5))).token_ids
        sampler.start(start_of(0, biased))
        drawn += sampler.sample(logits, list(range(5))).token_ids
        assert expected is None or drawn == expected
        expected = drawn
    assert expected is not None
    assert expected[1:5] == [NOT_FINITE, NOT_FINITE, NOT_FINITE, 70]
    assert expected[5] == 5
