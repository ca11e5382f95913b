"""A step's layout on the host."""

from dataclasses import fields

import numpy as np
import pytest

from serve_app.engine.block_tables import BlockTables
from serve_app.engine.step_layout import StepLayout, lay_out
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepInput

LIMITS = EngineLimits(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=64, block_size=4, num_blocks=64)


@pytest.fixture
def tables() -> BlockTables:
    tables = BlockTables(LIMITS)
    for row, blocks in ((5, [7, 8, 9]), (0, [3, 30, 12]), (2, [40]), (6, [1, 2])):
        tables.append(row, blocks)
    return tables


def step_of(slot_rows: list[int], num_tokens: list[int], num_computed: list[int]) -> StepInput:
    num_seqs = len(slot_rows)
    return StepInput(
        0, [], slot_rows, num_tokens, num_computed, [[]] * num_seqs, [1] * sum(num_tokens), [True] * num_seqs
    )


def parts_of(layout: StepLayout) -> dict[str, list[object]]:
    return {one.name: list(getattr(layout, one.name)) for one in fields(layout)}


def test_decodes_lie_alone_as_before_a_prompt(tables: BlockTables) -> None:
    alone = lay_out(step_of([5, 0, 2], [1, 1, 1], [9, 6, 1]), tables, 4, has_backend=True)
    assert parts_of(alone) == {
        "positions": [9, 6, 1],
        "slots": [9 * 4 + 1, 30 * 4 + 2, 40 * 4 + 1],
        "spans": [],
        "scattered": [],
        "decoded": [5, 0, 2],
        "lengths": [10, 7, 2],
        "decoded_tokens": [0, 1, 2],
    }
    mixed = lay_out(step_of([5, 0, 2, 6], [1, 1, 1, 3], [9, 6, 1, 0]), tables, 4, has_backend=True)
    assert len(mixed.spans) == 1
    for one in fields(mixed):
        value = getattr(mixed, one.name)
        if isinstance(value, np.ndarray):
            assert value.dtype == getattr(alone, one.name).dtype == np.int64
            assert list(value[: len(getattr(alone, one.name))]) == list(getattr(alone, one.name))


@pytest.mark.parametrize(("num_computed", "has_backend"), [(0, True), (5, False)])
def test_a_first_token_and_a_token_without_a_backend_are_attended_by_themselves(
    num_computed: int, has_backend: bool, tables: BlockTables
) -> None:
    layout = lay_out(step_of([5], [1], [num_computed]), tables, 4, has_backend=has_backend)
    assert len(layout.spans) == 1
    assert not len(layout.decoded)
