"""How the sequences of a batch are drawn: which rows go which way, as indices on the device.

A batch that stays the same from step to step is laid out once: the steps after it send nothing to the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from serve_app.engine.draws import NUM_CANDIDATES
from serve_app.engine.grammars import HeldRows
from serve_app.engine.host_staging import HostStaging
from serve_app.engine.sampler_tables import SamplerTables
from serve_app.types.generation import SamplingParams

_GREEDY_BELOW = 1e-5  # temperature; weights of any other token underflow anyway


@dataclass(slots=True)
class RowWays:
    """What a slot row's sequence asks for, as far as it decides how its batch is laid out."""

    ranked: int | None  # tokens to rank, at most; 0: drawn by temperature and min_p alone; None: greedy
    is_long_ranked: bool  # by top_k > NUM_CANDIDATES: apart, as they cost more
    is_penalized: bool
    is_biased: bool
    is_restricted: bool  # to allowed tokens
    num_unended: int  # tokens to draw before one may be drawn that ends it
    num_logprobs: int | None
    compares_tokens: bool = False  # its alternatives are the ones that it names
    is_held: bool = False  # to a grammar

    @classmethod
    def of(cls, params: SamplingParams, num_unended: int, vocab_size: int) -> "RowWays":
        """Those of a sequence that is not to end before so many tokens."""
        top_k = params.top_k if 0 < params.top_k < vocab_size else vocab_size
        is_long = NUM_CANDIDATES < top_k < vocab_size
        ranked = top_k if params.top_p < 1.0 or top_k < vocab_size else 0
        return cls(
            ranked=None if params.temperature < _GREEDY_BELOW else ranked,
            is_long_ranked=is_long,
            is_penalized=params.has_penalties,
            is_biased=bool(params.logit_bias),
            is_restricted=bool(params.allowed_token_ids),
            num_unended=num_unended,
            num_logprobs=len(params.logprob_token_ids) or params.num_logprobs,
            compares_tokens=bool(params.logprob_token_ids),
            is_held=params.grammar is not None,
        )


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """Rows of a batch that are drawn at random by one call."""

    index: Tensor  # [n] int64 in the batch
    slot_rows: Tensor  # [n] int64
    controls: Tensor  # [n, 4] float64
    stream_keys: Tensor  # [n] int64
    max_ranked: int


@dataclass(frozen=True, slots=True)
class PenalizedRows:
    """Rows of a batch whose logits depend on the tokens before."""

    index: Tensor  # [n] int64 in the batch
    slot_rows: Tensor  # [n] int64
    penalties: Tensor  # [n, 3] float32


@dataclass(frozen=True, slots=True)
class ChangedLogits:
    """Places in the logits [B * V] of a batch that are changed before anything is drawn."""

    biased: Tensor | None = None  # [n] int64
    biases: Tensor | None = None  # [n] float32
    banned: Tensor | None = None  # [n] int64: tokens that end a sequence too early
    restricted: Tensor | None = None  # [r] int64 rows of the batch
    allowed: Tensor | None = None  # [n] int64, of those rows

    def apply(self, scores: Tensor) -> None:
        """Change scores [B, V] float32 in place."""
        places = scores.view(-1)
        if self.biased is not None and self.biases is not None:
            places.index_add_(0, self.biased, self.biases)
        if self.banned is not None:
            places.index_fill_(0, self.banned, -torch.inf)
        if self.restricted is not None and self.allowed is not None:
            kept = places[self.allowed]
            scores.index_fill_(0, self.restricted, -torch.inf)
            places.index_copy_(0, self.allowed, kept)


@dataclass(frozen=True, slots=True)
class SampledBatch:
    """One batch as the sampler runs it."""

    slot_rows: Tensor  # [B] int64
    drawn: list[DrawnRows]
    changed: ChangedLogits | None
    penalized: PenalizedRows | None
    held: HeldRows | None
    unended: list[int]  # slot rows
    asking: Tensor | None  # [n] int64: rows of the batch whose log-probabilities are asked for
    num_tops: list[int | None]  # [B] alternatives, None: nothing is asked for; empty where none asks
    compared: list[tuple[int, Tensor]]  # places among `asking`, and the alternatives [k] int64 that are named there

    @property
    def is_greedy(self) -> bool:
        """Whether each token is the likeliest by the model's own numbers."""
        return not self.drawn and not self.changes_logits

    @property
    def changes_logits(self) -> bool:
        """Whether tokens are drawn by other numbers than the model's."""
        return self.changed is not None or self.penalized is not None or self.held is not None


def lay_out(
    slot_rows: Sequence[int],
    ways: Sequence[RowWays],
    tables: SamplerTables,
    staging: HostStaging,
    vocab_size: int,
) -> SampledBatch:
    """The batch of `slot_rows`, whose sequences ask for `ways`; one copy to the device."""
    chosen = _Chosen.of(ways)
    lists = [list(slot_rows), *chosen.groups, chosen.penalized, chosen.restricted, chosen.asking, chosen.held]
    arrays = [np.asarray(places, dtype=np.int64) for places in lists if places]
    uploaded = iter(staging.upload(arrays))
    rows, *groups, penalized, restricted, asking, held = (next(uploaded) if places else None for places in lists)
    assert rows is not None
    drawn = []
    for places, index in zip(chosen.groups, groups, strict=True):
        if index is not None:
            drawn.append(_drawn_rows(rows, index, tables, max(ways[b].ranked or 0 for b in places)))
    return SampledBatch(
        slot_rows=rows,
        drawn=drawn,
        changed=_changed(slot_rows, ways, tables, vocab_size, restricted) if chosen.changed else None,
        penalized=None if penalized is None else _penalized_rows(rows, penalized, tables),
        held=None if held is None else HeldRows(held, [slot_rows[b] for b in chosen.held]),
        unended=[slot_rows[b] for b in chosen.changed if ways[b].num_unended],
        asking=asking,
        num_tops=[way.num_logprobs for way in ways] if chosen.asking else [],
        compared=[
            (place, tables.compared(slot_rows[b])) for place, b in enumerate(chosen.asking) if ways[b].compares_tokens
        ],
    )


@dataclass(slots=True)
class _Chosen:
    """Rows of a batch by what is done with them."""

    groups: list[list[int]]  # drawn by plain weights, by rank, by long ranks
    penalized: list[int]
    restricted: list[int]
    asking: list[int]
    changed: list[int]  # in their logits
    held: list[int]  # to grammars

    @classmethod
    def of(cls, ways: Sequence[RowWays]) -> "_Chosen":
        """Those of a batch, in one pass."""
        found = cls([[], [], []], [], [], [], [], [])
        for b, way in enumerate(ways):
            if way.ranked is not None:
                found.groups[0 if way.ranked == 0 else 1 + way.is_long_ranked].append(b)
            if way.is_penalized:
                found.penalized.append(b)
            if way.is_restricted:
                found.restricted.append(b)
            if way.num_logprobs is not None:
                found.asking.append(b)
            if way.is_biased or way.is_restricted or way.num_unended:
                found.changed.append(b)
            if way.is_held:
                found.held.append(b)
        return found


def _drawn_rows(rows: Tensor, index: Tensor, tables: SamplerTables, max_ranked: int) -> DrawnRows:
    slot_rows = rows[index]
    return DrawnRows(index, slot_rows, tables.controls(slot_rows), tables.stream_keys(slot_rows), max_ranked)


def _penalized_rows(rows: Tensor, index: Tensor, tables: SamplerTables) -> PenalizedRows:
    slot_rows = rows[index]
    return PenalizedRows(index, slot_rows, tables.penalties(slot_rows))


def _changed(
    slot_rows: Sequence[int],
    ways: Sequence[RowWays],
    tables: SamplerTables,
    vocab_size: int,
    restricted: Tensor | None,
) -> ChangedLogits:
    biased: list[Tensor] = []
    biases: list[Tensor] = []
    banned: list[Tensor] = []
    allowed: list[Tensor] = []
    for b, (slot_row, way) in enumerate(zip(slot_rows, ways, strict=True)):
        if way.is_biased:
            ids, values = tables.biases(slot_row)
            biased.append(ids + b * vocab_size)
            biases.append(values)
        if way.num_unended:
            banned.append(tables.end_ids(slot_row) + b * vocab_size)
        if way.is_restricted:
            allowed.append(tables.allowed(slot_row) + b * vocab_size)
    return ChangedLogits(_joined(biased), _joined(biases), _joined(banned), restricted, _joined(allowed))


def _joined(parts: list[Tensor]) -> Tensor | None:
    return torch.cat(parts) if parts else None
