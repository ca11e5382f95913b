"""What decodes the sequences of a step in one call, whatever is behind it."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """The sequences of a call: where their blocks stand, and how many keys each one sees."""

    tables: Tensor  # [B, N] int64: the blocks of each, in the order of their tokens; any block behind its last
    lengths: Tensor  # [B] int64: keys of each, its own token's among them
    max_length: int  # at least the largest of `lengths`


class DecodeBackend(Protocol):
    """Attention of sequences that have one query each, over a paged KV cache."""

    @property
    def is_graph_safe(self) -> bool:
        """Whether a call launches the same work whatever its tensors hold, as a captured graph does."""
        ...

    @property
    def is_compiled(self) -> bool:
        """Whether it is a compiled kernel, which those of whole layers may stand in for: the numbers are the same."""
        ...

    def decode(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        decoded: DecodeRows,
        scaling: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """query [B, H, Dh], one layer's keys [num_slots, K, Dh] and values [num_slots, K, Dv], sinks [H] -> [B, H, Dv].

        window: keys that a query sees, itself among them. softcap: scores are squeezed to +-softcap by tanh.
        """
        ...


def slots_of(decoded: DecodeRows, first: Tensor, count: int, block_size: int) -> Tensor:
    """Slots [B, count] int64 of the keys from position `first` [B] on; of any block where a sequence has no more."""
    positions = first[:, None] + torch.arange(count, device=first.device)
    places = (positions // block_size).clamp(max=decoded.tables.shape[1] - 1)
    return decoded.tables.gather(1, places) * block_size + positions % block_size
