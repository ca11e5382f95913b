"""The parity tests can fail: small mistakes in the engine, made here on purpose, change tokens.

Two changes that look like mistakes are none, by the mathematics of attention: rotary positions that are all shifted
alike, and two full blocks of one sequence that change places once their keys are stored.
"""

from dataclasses import replace

import numpy as np
import pytest

from serve_app.engine.block_tables import BlockTables
from serve_app.engine.launched_step import LaunchedStep
from serve_app.engine.model_runner import ModelRunner
from serve_app.engine.step_layout import StepLayout
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepInput
from tests.compiled import kernels_or_skip
from tests.parity.comparison import Comparison
from tests.parity.conftest import NUM_OUTPUTS, References
from tests.plain_driver import greedy, load_runner, run_in_process

LIMITS = EngineLimits(max_num_seqs=8, max_num_batched_tokens=32, max_model_len=128, block_size=4, num_blocks=64)


class PositionsShifted(ModelRunner):
    """Learned positions one too high."""

    def _lay_out(self, step: StepInput) -> StepLayout:
        layout = super()._lay_out(step)
        return replace(layout, positions=layout.positions + 1)


class DecodePositionsShifted(ModelRunner):
    """Positions one too high once a sequence has tokens in the cache."""

    def _lay_out(self, step: StepInput) -> StepLayout:
        layout = super()._lay_out(step)
        is_cached = np.repeat(np.asarray(step.num_computed) > 0, step.num_tokens)
        return replace(layout, positions=layout.positions + is_cached)


class SlotsShifted(ModelRunner):
    """Keys and values stored one slot too far."""

    def _lay_out(self, step: StepInput) -> StepLayout:
        layout = super()._lay_out(step)
        return replace(layout, slots=(layout.slots + 1) % (self._limits.num_blocks * self._limits.block_size))


class FirstAndLastBlockSwapped(ModelRunner):
    """The first block of a running sequence and the one being filled change places."""

    def _take_blocks(self, step: StepInput) -> None:
        super()._take_blocks(step)
        for row, num_computed in zip(step.slot_rows, step.num_computed, strict=True):
            last = num_computed // self._limits.block_size
            if last > 0:
                swap(self._tables, (row, 0), (row, last))
                self._tables.num_run_blocks[row] = 0  # they are in no row any more


class BlocksOfTwoSequencesSwapped(ModelRunner):
    """The first blocks of two running sequences change places, for one step."""

    def _forward(self, step: StepInput) -> LaunchedStep | None:
        rows = [row for row, computed in zip(step.slot_rows, step.num_computed, strict=True) if computed > 0]
        if len(rows) < 2:
            return super()._forward(step)
        swap(self._tables, (rows[0], 0), (rows[1], 0))
        launched = super()._forward(step)
        swap(self._tables, (rows[0], 0), (rows[1], 0))
        return launched


def swap(tables: BlockTables, one: tuple[int, int], other: tuple[int, int]) -> None:
    """Let two blocks change places, in the tables on the device too."""
    tables.blocks[one], tables.blocks[other] = tables.blocks[other], tables.blocks[one]
    for row, index in (one, other):
        tables._changes[row * tables.blocks.shape[1] + index] = int(tables.blocks[row, index])


@pytest.mark.parametrize("attention", ["reference", "padded", "compiled"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_engine_as_it_is_passes_the_comparison(reference_of: References, name: str, attention: str) -> None:
    assert _num_differences(reference_of, name, ModelRunner, attention) == 0


@pytest.mark.parametrize("attention", ["reference", "padded", "compiled"])
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
    if attention == "compiled":
        runner = load_runner(directory, LIMITS, runner_class, kernels=kernels_or_skip())
    else:
        runner = load_runner(directory, LIMITS, runner_class, attention=attention)
    requests = [greedy(str(index), one.prompt, NUM_OUTPUTS) for index, one in enumerate(references)]
    comparison = Comparison()
    comparison.add(name, references, run_in_process(runner, LIMITS, requests))
    return len(comparison.unexplained())
