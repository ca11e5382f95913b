"""The parity tests can fail: small mistakes in the engine, made here on purpose, change tokens.

Two changes that look like mistakes are none, by the mathematics of attention: rotary positions that are all shifted
alike, and two full blocks of one sequence that change places once their keys are stored.
"""

import numpy as np
import pytest
from torch import Tensor

from serve_app.engine.attention.paged import PagedAttention
from serve_app.engine.model_runner import ModelRunner
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepInput
from tests.parity.comparison import Comparison
from tests.parity.conftest import NUM_OUTPUTS, References
from tests.plain_driver import greedy, load_runner, run_in_process

LIMITS = EngineLimits(max_num_seqs=8, max_num_batched_tokens=32, max_model_len=128, block_size=4, num_blocks=64)


class PositionsShifted(ModelRunner):
    """Learned positions one too high."""

    def _prepare(self, step: StepInput) -> tuple[Tensor, PagedAttention]:
        positions, attention = super()._prepare(step)
        return positions + 1, attention


class DecodePositionsShifted(ModelRunner):
    """Positions one too high once a sequence has tokens in the cache."""

    def _prepare(self, step: StepInput) -> tuple[Tensor, PagedAttention]:
        positions, attention = super()._prepare(step)
        is_cached = np.repeat(np.asarray(step.num_computed) > 0, step.num_tokens)
        return positions + self._to_device(is_cached.astype(np.int64)), attention


class SlotsShifted(ModelRunner):
    """Keys and values stored one slot too far."""

    def _prepare(self, step: StepInput) -> tuple[Tensor, PagedAttention]:
        positions, attention = super()._prepare(step)
        attention._slots = (attention._slots + 1) % (self._limits.num_blocks * self._limits.block_size)
        return positions, attention


class FirstAndLastBlockSwapped(ModelRunner):
    """The first block of a running sequence and the one being filled change places."""

    def _take_blocks(self, step: StepInput) -> None:
        super()._take_blocks(step)
        for row, num_computed in zip(step.slot_rows, step.num_computed, strict=True):
            last = num_computed // self._limits.block_size
            if last > 0:
                self._tables.blocks[row, [0, last]] = self._tables.blocks[row, [last, 0]]
                self._tables.num_run_blocks[row] = 0  # they are in no row any more


class BlocksOfTwoSequencesSwapped(ModelRunner):
    """The first blocks of two running sequences change places, for one step."""

    def _prepare(self, step: StepInput) -> tuple[Tensor, PagedAttention]:
        rows = [row for row, computed in zip(step.slot_rows, step.num_computed, strict=True) if computed > 0]
        if len(rows) < 2:
            return super()._prepare(step)
        pair, reverse = [rows[0], rows[1]], [rows[1], rows[0]]
        self._tables.blocks[pair, 0] = self._tables.blocks[reverse, 0]
        prepared = super()._prepare(step)
        self._tables.blocks[pair, 0] = self._tables.blocks[reverse, 0]
        return prepared


@pytest.mark.parametrize("attention", ["reference", "padded"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_engine_as_it_is_passes_the_comparison(reference_of: References, name: str, attention: str) -> None:
    assert _num_differences(reference_of, name, ModelRunner, attention) == 0


@pytest.mark.parametrize("attention", ["reference", "padded"])
@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("gpt2", PositionsShifted),
        ("gpt2", DecodePositionsShifted),
        ("llama", DecodePositionsShifted),
        ("llama", SlotsShifted),
        ("gpt2", SlotsShifted),
        ("llama", FirstAndLastBlockSwapped),
        ("gpt2", FirstAndLastBlockSwapped),
        ("llama", BlocksOfTwoSequencesSwapped),
        ("gpt2", BlocksOfTwoSequencesSwapped),
    ],
)
def test_a_mistake_in_the_engine_fails_the_comparison(
    reference_of: References, name: str, mutant: type[ModelRunner], attention: str
) -> None:
    assert _num_differences(reference_of, name, mutant, attention) >= 3


def _num_differences(reference_of: References, name: str, runner_class: type[ModelRunner], attention: str) -> int:
    """Of 16 sequences in a batch, those that differ from transformers at no near tie."""
    directory, references = reference_of(name)
    runner = load_runner(directory, LIMITS, runner_class, attention=attention)
    requests = [greedy(str(index), one.prompt, NUM_OUTPUTS) for index, one in enumerate(references)]
    comparison = Comparison()
    comparison.add(name, references, run_in_process(runner, LIMITS, requests))
    return len(comparison.unexplained())
