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
        sinks: Tensor | None = None,
    ) -> Tensor:
        """query [H, T, D], key [K, T, D] and value [K, T, Dv] of the step's tokens -> output [T, H, Dv].

        sinks [H]: a score of each head that takes its share of the attention, and gives nothing.
        """
