"""One layer's paged keys and values, in scattered blocks, with a query of each sequence."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serve_app.architectures.head_sizes import HeadSizes
from serve_app.engine.attention.backend import DecodeBackend, DecodeRows, slots_of
from serve_app.engine.attention.reference import attend_one


@dataclass(frozen=True, slots=True)
class Scores:
    """What a layer does to its scores."""

    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None  # [H]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's cache; slots that no sequence sees hold NaN."""

    keys: Tensor  # [num_slots, K, Dh]
    values: Tensor  # [num_slots, K, Dv]
    query: Tensor  # [B, H, Dh]
    decoded: DecodeRows
    block_size: int

    @property
    def scaling(self) -> float:
        """Of the scores."""
        return float(self.query.shape[2] ** -0.5)

    def decode(self, backend: DecodeBackend, scores: Scores) -> Tensor:
        """What a backend gives for all sequences: [B, H, Dv]."""
        return self._decode(backend, scores, self.query, self.decoded)

    def decode_alone(self, backend: DecodeBackend, scores: Scores, index: int) -> Tensor:
        """What it gives for one of them: [H, Dv]."""
        one = slice(index, index + 1)
        length = int(self.decoded.lengths[index])
        row = DecodeRows(self.decoded.tables[one], self.decoded.lengths[one], length)
        return self._decode(backend, scores, self.query[one], row)[0]

    def attend_each(self, scores: Scores, dtype: torch.dtype, device: torch.device) -> Tensor:
        """One sequence after the other, by the reference in a dtype on a device: [B, H, Dv]."""
        sinks = None if scores.sinks is None else scores.sinks.to(device)
        outputs = []
        for index, length in enumerate(self.decoded.lengths.tolist()):
            slots = self._slots(index, length)
            query, keys, values = (
                one.to(device).to(dtype) for one in (self.query[index], self.keys[slots], self.values[slots])
            )
            attended = attend_one(query[:, None], keys, values, self.scaling, scores.window, scores.softcap, sinks)
            outputs.append(attended[0])
        return torch.stack(outputs)

    def forget_unseen(self) -> None:
        """Fill the slots that no sequence sees with NaN, as a request that failed may have left them."""
        lengths = self.decoded.lengths.tolist()
        seen = torch.cat([self._slots(index, length) for index, length in enumerate(lengths)])
        is_unseen = torch.ones(len(self.keys), dtype=torch.bool, device=seen.device).index_fill_(0, seen, False)
        self.keys[is_unseen] = self.values[is_unseen] = torch.nan

    def _slots(self, index: int, length: int) -> Tensor:
        row = DecodeRows(self.decoded.tables[index : index + 1], self.decoded.lengths[index : index + 1], length)
        first = torch.zeros(1, dtype=torch.int64, device=self.keys.device)
        return slots_of(row, first, length, self.block_size)[0]

    def _decode(self, backend: DecodeBackend, scores: Scores, query: Tensor, decoded: DecodeRows) -> Tensor:
        return backend.decode(
            query, self.keys, self.values, decoded, self.scaling, scores.window, scores.softcap, scores.sinks
        )


def make_layer(
    heads: HeadSizes, lengths: Sequence[int], block_size: int, dtype: torch.dtype, device: torch.device
) -> Layer:
    """Sequences of so many keys, drawn from a fixed seed."""
    generator = torch.Generator(device).manual_seed(len(lengths))
    counts = [-(-length // block_size) for length in lengths]
    num_blocks = sum(counts) + 1  # one that no sequence has
    order = torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(0))
    tables = torch.full((len(lengths), max(counts)), num_blocks - 1)
    for row, blocks in enumerate(torch.split(order, counts)):
        tables[row, : len(blocks)] = blocks

    def drawn(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)

    num_slots = num_blocks * block_size
    return Layer(
        keys=drawn(num_slots, heads.num_kv_heads, heads.head_dim),
        values=drawn(num_slots, heads.num_kv_heads, heads.value_dim),
        query=drawn(len(lengths), heads.num_heads, heads.head_dim),
        decoded=DecodeRows(tables.to(device), torch.tensor(lengths, device=device), max(lengths)),
        block_size=block_size,
    )
