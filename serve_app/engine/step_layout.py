"""Where the tokens of a step stand, and how each of its sequences is attended: arrays on the host."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.engine.attention.paged import SequenceSpan
from serve_app.engine.block_tables import BlockTables, IntArray
from serve_app.types.steps import DRAWN_BEFORE, StepInput


@dataclass(frozen=True, slots=True)
class StepLayout:
    """A step of T tokens."""

    positions: IntArray  # [T]
    slots: IntArray  # [T]
    spans: list[SequenceSpan]  # of the sequences that are attended one by one
    scattered: IntArray  # [N] blocks of all spans that are not read in place
    decoded: IntArray  # [B] slot rows of the sequences that a backend decodes
    lengths: IntArray  # [B] their keys
    decoded_tokens: IntArray  # [B] their tokens among those of the step


def lay_out(step: StepInput, tables: BlockTables, block_size: int, *, has_backend: bool) -> StepLayout:
    """The layout of a step whose blocks are in the tables."""
    if has_backend and len(step.token_ids) == len(step.slot_rows) and all(step.num_computed):
        return _lay_out_decodes(step, tables)
    num_tokens = np.asarray(step.num_tokens, dtype=np.int64)
    num_computed = np.asarray(step.num_computed, dtype=np.int64)
    first_tokens = np.cumsum(num_tokens) - num_tokens
    positions = np.arange(len(step.token_ids)) + np.repeat(num_computed - first_tokens, num_tokens)
    slot_rows = np.asarray(step.slot_rows, dtype=np.int64)
    decoded: list[int] = []  # indices of sequences
    spans: list[SequenceSpan] = []
    scattered: list[IntArray] = []
    num_gathered = 0
    for index, slot_row in enumerate(step.slot_rows):
        first, count, computed = int(first_tokens[index]), step.num_tokens[index], step.num_computed[index]
        if computed == 0:
            spans.append(SequenceSpan(first, count, computed))
            continue
        if count == 1 and has_backend:
            decoded.append(index)
            continue
        first_slot = tables.first_slot(slot_row, computed + count)
        if first_slot is not None:
            spans.append(SequenceSpan(first, count, computed, first_slot=first_slot))
            continue
        blocks = tables.blocks_of(slot_row, computed + count)
        spans.append(SequenceSpan(first, count, computed, first_gathered=num_gathered))
        scattered.append(blocks)
        num_gathered += len(blocks) * block_size
    return StepLayout(
        positions,
        tables.slots(np.repeat(slot_rows, num_tokens), positions),
        spans,
        np.concatenate(scattered) if scattered else _NONE,
        slot_rows[decoded],
        num_computed[decoded] + 1,
        first_tokens[decoded],
    )


def _lay_out_decodes(step: StepInput, tables: BlockTables) -> StepLayout:
    """The same in a fraction of the calls, where a backend decodes all sequences: most steps are such."""
    slot_rows, positions = (np.asarray(one, dtype=np.int64) for one in (step.slot_rows, step.num_computed))
    slots, places = tables.slots(slot_rows, positions), np.arange(len(slot_rows))
    return StepLayout(positions, slots, [], _NONE, slot_rows, positions + 1, places)


def logit_rows(step: StepInput) -> tuple[int, IntArray]:
    """Tokens of the step whose logits are wanted: how many are drawn from, then those of prompt targets behind them."""
    ends = np.cumsum(np.asarray(step.num_tokens, dtype=np.int64))
    rows = [int(ends[index]) - 1 for index, is_drawn in enumerate(step.samples) if is_drawn]
    num_drawn = len(rows)
    for index, targets in step.prompt_targets.items():
        first = int(ends[index]) - step.num_tokens[index] + targets.offset
        rows.extend(range(first, first + len(targets.token_ids)))
    return num_drawn, np.asarray(rows, dtype=np.int64)


def unknown_tokens(step: StepInput) -> tuple[IntArray, IntArray]:
    """Places [n] of the tokens that the Router did not know, and the slot rows [n] whose last draw they are."""
    if DRAWN_BEFORE not in step.token_ids:
        return _NONE, _NONE
    places = np.flatnonzero(np.asarray(step.token_ids, dtype=np.int64) == DRAWN_BEFORE)
    slot_rows = np.repeat(np.asarray(step.slot_rows, dtype=np.int64), step.num_tokens)
    return places, slot_rows[places]


def target_ids(step: StepInput) -> IntArray:
    """The tokens of all prompt targets, one sequence after the other."""
    ids = [token for targets in step.prompt_targets.values() for token in targets.token_ids]
    return np.asarray(ids, dtype=np.int64) if ids else _NONE


def only_decodes(step: StepInput) -> bool:
    """Whether each sequence has one token, behind others, and draws one."""
    is_plain = not step.prompt_targets and all(step.samples)
    return is_plain and len(step.token_ids) == len(step.slot_rows) and all(step.num_computed)


def drawn_slot_rows(step: StepInput) -> Sequence[int]:
    """Slot rows of the sequences that draw a token."""
    return [slot_row for slot_row, is_drawn in zip(step.slot_rows, step.samples, strict=True) if is_drawn]


_NONE = np.empty(0, dtype=np.int64)
