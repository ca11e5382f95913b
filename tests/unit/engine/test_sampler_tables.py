"""What the sampler sends to the device, and what it waits for."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from serve_app.engine.block_tables import IntArray
from serve_app.engine.host_staging import HostStaging
from serve_app.engine.sampler import Sampler
from serve_app.types.generation import SamplingParams
from serve_app.types.steps import SequenceStart

VOCAB = 40
GREEDY = SamplingParams(max_tokens=64, seed=0, temperature=0.0)
RANDOM = SamplingParams(max_tokens=64, seed=0)
aten = torch.ops.aten


def start_of(
    row: int, params: SamplingParams, history: Sequence[int] = (), end_ids: Sequence[int] = ()
) -> SequenceStart:
    return SequenceStart(row, 0, params, list(end_ids), 0, list(history), len(history))


def logits_of(num_rows: int, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


class CountedStaging(HostStaging):
    """Counts copies to the device."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.num_uploads = 0

    def upload(self, arrays: Sequence[IntArray]) -> list[Tensor]:
        self.num_uploads += 1
        return super().upload(arrays)


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what a host waits for on a GPU: numbers and sizes that depend on what tensors hold."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_waits = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_waits += func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default)
        return func(*args, **(kwargs or {}))


ALL_WAYS = [
    GREEDY,
    RANDOM,
    replace(RANDOM, top_k=7, top_p=0.9),
    replace(RANDOM, top_k=20, presence_penalty=1.0, repetition_penalty=1.2),
    replace(RANDOM, num_logprobs=3, logit_bias={3: 2.0}),
    replace(GREEDY, allowed_token_ids=(1, 2, 3), min_tokens=30),
]


def started(staging: HostStaging) -> Sampler:
    sampler = Sampler(2 * len(ALL_WAYS), VOCAB, "cpu", staging)
    for row in range(2 * len(ALL_WAYS)):
        sampler.start(start_of(row, ALL_WAYS[row % len(ALL_WAYS)], end_ids=[1]))
    return sampler


def test_steps_of_one_batch_send_nothing_to_the_device_and_wait_for_nothing() -> None:
    staging = CountedStaging()
    sampler = started(staging)
    batches = list(range(6)), list(range(6, 12))  # in turn, as in a pipeline of two stages
    for batch in batches:
        sampler.draw(logits_of(6), batch)
    num_uploads = staging.num_uploads
    assert num_uploads == 3  # the table once, and each batch
    with Waits() as waits:
        drawn = [sampler.draw(logits_of(6, seed=seed), batch) for seed in range(8) for batch in batches]
    assert staging.num_uploads == num_uploads
    assert waits.num_waits == 0
    again = started(CountedStaging())
    for batch in batches:
        again.draw(logits_of(6), batch)
    for one, (seed, batch) in zip(drawn, product(range(8), batches), strict=True):
        assert one.read() == again.sample(logits_of(6, seed=seed), batch)


def test_a_newcomer_costs_one_copy_of_its_row_and_one_of_the_batch() -> None:
    staging = CountedStaging()
    sampler = started(staging)
    batch = list(range(6))
    sampler.draw(logits_of(6), batch)
    sampler.draw(logits_of(2), [8, 9])
    num_uploads = staging.num_uploads
    sampler.start(start_of(3, GREEDY))
    sampler.start(start_of(5, replace(RANDOM, frequency_penalty=0.5), history=[4, 4]))
    sampler.draw(logits_of(6), batch)
    assert staging.num_uploads == num_uploads + 2
    sampler.draw(logits_of(2), [8, 9])  # none of them is in it
    assert staging.num_uploads == num_uploads + 2


class FailingStaging(HostStaging):
    """Has no memory when a test says so."""

    has_memory = True

    def upload(self, arrays: Sequence[IntArray]) -> list[Tensor]:
        if not self.has_memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().upload(arrays)


def test_a_sequence_whose_way_to_the_device_failed_is_drawn_by_its_own_parameters() -> None:
    staging = FailingStaging(torch.device("cpu"))
    sampler = Sampler(2, VOCAB, "cpu", staging)
    sampler.start(start_of(0, replace(RANDOM, top_k=3, presence_penalty=0.5)))
    sampler.start(start_of(1, GREEDY))
    staging.has_memory = False
    with pytest.raises(torch.OutOfMemoryError):
        sampler.draw(logits_of(1), [1])
    staging.has_memory = True
    fresh = Sampler(1, VOCAB, "cpu")
    fresh.start(start_of(0, replace(RANDOM, top_k=3, presence_penalty=0.5)))
    assert sampler.sample(logits_of(1), [0]) == fresh.sample(logits_of(1), [0])
