"""What a stage of a decoder asks of the attention of one step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PagedRows:
    """A step of one token of each sequence, on CPU: where its keys and values go, and where those before it are."""

    slots: Tensor  # [B] int64
    tables: Tensor  # [B, N] int64: the blocks of each
    lengths: Tensor  # [B] int64: keys of each, its own token's among them
    keys: Sequence[Tensor]  # [num_slots, K, Dh] of each layer
    values: Sequence[Tensor]
    block_size: int
    memory: int  # another number for keys and values that lie elsewhere


class StageAttention(Protocol):
    """Attention of one step over a stage's KV cache."""

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """query [H, T, D], key [K, T, D] and value [K, T, Dv] of the step's tokens -> output [T, H, Dv].

        sinks [H]: a score of each head that takes its share of the attention, and gives nothing.
        """

    def compiled_rows(self) -> PagedRows | None:
        """What compiled kernels read in place of `attend`, where they may and all of the step's tokens decode."""
