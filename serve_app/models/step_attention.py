"""What a stage of a decoder asks of the attention of one step."""

from typing import Protocol

from torch import Tensor


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
    ) -> Tensor:
        """query [H, T, D], key and value [K, T, D] of the step's tokens -> output [T, H, D]."""
