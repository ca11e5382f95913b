"""Draws from the first candidates are those of a full sort, row by row, and a row pays for its own sort only."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from serve_app.engine.draws import draw_ranked, stream_key, uniforms
from serve_app.engine.sampler import Sampler
from serve_app.types.generation import SamplingParams
from tests.unit.engine.test_sampler import RANDOM, logits_of, start_of

NUCLEUS = replace(RANDOM, top_p=0.9)
MIXED = [
    RANDOM,
    replace(RANDOM, temperature=0.0),
    replace(RANDOM, min_p=0.02, temperature=1.3),
    NUCLEUS,
    replace(NUCLEUS, top_p=0.0),
    replace(NUCLEUS, top_p=0.3, temperature=0.6),
    replace(NUCLEUS, top_p=0.9999, temperature=2.0),
    replace(NUCLEUS, min_p=0.001),
    replace(NUCLEUS, min_p=1.0),
    replace(RANDOM, top_k=5),
    replace(RANDOM, top_k=1000, min_p=0.01),
    replace(NUCLEUS, top_k=40),
    replace(NUCLEUS, top_k=1025),
    replace(NUCLEUS, top_k=3000, temperature=0.8),
    replace(RANDOM, top_k=4900),
]


def masked(logits: Tensor, stride: int) -> Tensor:
    """Every stride-th token stays."""
    is_kept = torch.arange(logits.shape[1]) % stride == 3
    return logits.masked_fill(~is_kept, -math.inf)


LOGITS: dict[str, Callable[[int, int], Tensor]] = {
    "peaked": lambda vocab_size, seed: logits_of(len(MIXED), vocab_size, seed, scale=5.0),
    "wide": lambda vocab_size, seed: logits_of(len(MIXED), vocab_size, seed, scale=1.5),
    "nearly flat": lambda vocab_size, seed: logits_of(len(MIXED), vocab_size, seed, scale=0.01),
    "flat": lambda vocab_size, _: torch.zeros(len(MIXED), vocab_size),
    "bfloat16": lambda vocab_size, seed: logits_of(len(MIXED), vocab_size, seed).bfloat16(),
    "whole numbers": lambda vocab_size, seed: logits_of(len(MIXED), vocab_size, seed).round(),
    "a few allowed": lambda vocab_size, seed: masked(logits_of(len(MIXED), vocab_size, seed), vocab_size // 9),
    "half allowed": lambda vocab_size, seed: masked(logits_of(len(MIXED), vocab_size, seed), 4).round(),
}


def reference_draw(params: SamplingParams, logits: Tensor, position: int) -> int:
    """The token of one row of logits [V], by a stable sort of the whole row."""
    scores = logits.float()
    if params.temperature == 0:
        return int(scores.argmax())
    is_by_rank = 0 < params.top_k < len(scores) or params.top_p < 1
    order = scores.sort(descending=True, stable=True).indices if is_by_rank else torch.arange(len(scores))
    weights = ((scores - scores.max()).double() / params.temperature).exp()[order]
    weights[weights < params.min_p] = 0
    cumulated = weights[: params.top_k or len(scores)].cumsum(0)
    nucleus = cumulated[: 1 + int((cumulated < params.top_p * cumulated[-1]).sum())]
    key = torch.tensor([stream_key(params.seed, 0)])
    uniform = float(uniforms(key, torch.tensor([position])))
    return int(order[int((nucleus <= uniform * nucleus[-1]).sum())])


def check_equal_to_a_full_sort(logits_of_step: Callable[[int], Tensor]) -> None:
    vocab_size = logits_of_step(0).shape[1]
    sampler = Sampler(len(MIXED), vocab_size, "cpu")
    params = [replace(each, seed=100 + row) for row, each in enumerate(MIXED)]
    for row, each in enumerate(params):
        sampler.start(start_of(row, each))
    for step in range(4):
        logits = logits_of_step(step)
        expected = [reference_draw(each, logits[row], step) for row, each in enumerate(params)]
        assert sampler.sample(logits, list(range(len(MIXED)))).token_ids == expected


@pytest.fixture
def ranks_as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first candidates, then the vocabulary: nothing in between."""
    monkeypatch.setattr("serve_app.engine.draws._CPU_CANDIDATES_PART", 1 << 20)


@pytest.mark.parametrize("vocab_size", [50, 1024, 1025, 5000, 50_000])
@pytest.mark.parametrize("kind", LOGITS)
def test_mixed_batches_draw_what_a_full_sort_of_each_row_draws(kind: str, vocab_size: int) -> None:
    check_equal_to_a_full_sort(lambda step: LOGITS[kind](vocab_size, step))


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.usefixtures("ranks_as_on_cuda")
def test_the_two_sizes_of_cuda_draw_the_same(kind: str) -> None:
    check_equal_to_a_full_sort(lambda step: LOGITS[kind](20_000, step))


@pytest.mark.parametrize("num_above", [0, 900, 1023, 1024])
def test_of_a_tie_over_the_edge_of_the_candidates_the_lowest_ids_are_drawn(num_above: int) -> None:
    num_tied, vocab_size = 3000, 9000
    logits = torch.full((vocab_size,), -math.inf)
    shuffled = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(0))
    logits[shuffled[:num_above]] = 1e-6
    tied = shuffled[num_above : num_above + num_tied]
    logits[tied] = 0.0
    sampler = Sampler(400, vocab_size, "cpu")
    for row in range(400):
        sampler.start(start_of(row, replace(RANDOM, seed=row, top_p=(num_above + 300) / (num_above + num_tied))))
    drawn = sampler.sample(logits.expand(400, -1), list(range(400))).token_ids
    allowed = set(shuffled[:num_above].tolist()) | set(tied.sort().values[:301].tolist())
    assert set(drawn) <= allowed
    assert set(drawn) & set(tied.tolist())


@pytest.fixture
def two_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("two_threads")
def test_a_lone_row_draws_what_it_draws_in_a_batch_on_a_knifes_edge() -> None:
    """The nucleus ends at the last bit of the row's sum, which several threads add up in another order."""
    distances = torch.rand(1, 100_000, generator=torch.Generator().manual_seed(0))
    weights = distances.double().neg().exp()
    totals = weights.expand(2, -1).sum(dim=-1, keepdim=True)[:1]
    cumulated = weights.sort(descending=True).values.cumsum(dim=-1)[0, :1000]
    for mass in cumulated[::25]:
        controls = torch.tensor([[1.0, 0.0, float(mass / totals), 100_000.0, 1 - 2**-53]], dtype=torch.float64)
        batch = draw_ranked(distances.expand(3, -1).contiguous(), controls.expand(3, -1), 1024)
        assert batch.tolist() == draw_ranked(distances, controls, 1024).tolist() * 3


class OperatorCounts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the shapes of which the best are taken and that are sorted, and how often the host asks for values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ranked_shapes: list[list[int]] = []
        self.sorted_shapes: list[list[int]] = []
        self.num_waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.topk:
            self.ranked_shapes.append(list(args[0].shape))
        if func.overloadpacket in (torch.ops.aten.sort, torch.ops.aten.argsort):
            self.sorted_shapes.append(list(args[0].shape))
        if func.overloadpacket in (torch.ops.aten.nonzero, torch.ops.aten._local_scalar_dense):
            self.num_waits += 1
        return func(*args, **(kwargs or {}))


def counts_of_a_step(logits: Tensor, choices: list[SamplingParams]) -> OperatorCounts:
    sampler = Sampler(len(choices), logits.shape[1], "cpu")
    for row, params in enumerate(choices):
        sampler.start(start_of(row, replace(params, seed=row)))
    counts = OperatorCounts()
    with counts:
        sampler.sample(logits, list(range(len(choices))))
    return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("ranks_as_on_cuda")
def test_peaked_rows_sort_no_vocabulary_and_wait_once(dtype: torch.dtype) -> None:
    logits = logits_of(2 * len(MIXED), 50_000, scale=25.0).to(dtype)
    counts = counts_of_a_step(logits, MIXED * 2)
    assert (counts.sorted_shapes, counts.num_waits) == ([], 1)


def test_rows_that_rank_a_set_number_of_tokens_never_wait() -> None:
    counts = counts_of_a_step(torch.zeros(3, 50_000), [RANDOM, replace(NUCLEUS, top_k=9), replace(NUCLEUS, top_k=2000)])
    assert (counts.sorted_shapes, counts.num_waits) == ([], 0)


def test_rows_beyond_the_candidates_are_ranked_again_and_only_flat_ones_sorted_whole() -> None:
    logits = logits_of(12, 50_000, scale=5.0)
    logits[[4, 9]] = 0.0
    logits[7, :5000] = 40.0  # these fit in an eighth of the vocabulary
    counts = counts_of_a_step(logits, [NUCLEUS] * 12)
    assert counts.ranked_shapes == [[12, 50_000], [1, 50_000]]
    assert counts.sorted_shapes == [[2, 50_000]]


@pytest.mark.usefixtures("ranks_as_on_cuda")
def test_flat_rows_wait_no_more_often() -> None:
    counts = counts_of_a_step(torch.zeros(5, 50_000), [NUCLEUS] * 5)
    assert (counts.sorted_shapes, counts.num_waits) == ([[5, 50_000]], 1)


@pytest.mark.usefixtures("ranks_as_on_cuda")
def test_rows_without_finite_logits_are_not_ranked_again() -> None:
    logits = logits_of(4, 50_000, scale=5.0)
    logits[0, 7], logits[1, 8], logits[2] = math.nan, math.inf, -math.inf
    counts = counts_of_a_step(logits, [NUCLEUS] * 4)
    assert (counts.sorted_shapes, counts.num_waits) == ([], 1)
