"""Cosines and sines of the rotary positions of a step's rows, kept for the first positions of a model."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_MAX_KEPT = 8192  # positions: 8 MiB of heads of 128 in float32


@dataclass(frozen=True, slots=True)
class RowAngles:
    """Cosines and sines of positions, and which of them a step's rows have."""

    cos: Tensor  # [P, Dh] of the stage's dtype, contiguous
    sin: Tensor
    places: Tensor  # [B] int64 among the P


class KeptAngles:
    """A model's own rotary embedding, which is asked once for the positions that are kept."""

    def __init__(self, rotary: nn.Module, dtype: torch.dtype) -> None:
        self._rotary = rotary
        self._dtype = dtype
        self._kept: tuple[Tensor, Tensor] | None = None

    @torch.inference_mode()
    def keep(self, num_positions: int) -> None:
        """Ask for the first positions, once its frequencies change no more."""
        self._kept = self._computed(torch.arange(min(num_positions, _MAX_KEPT)))

    def of(self, positions: Tensor) -> RowAngles:
        """Those of positions [B] int64, on CPU."""
        if self._kept is not None and positions.numpy().max() < len(self._kept[0]):
            return RowAngles(*self._kept, positions)
        return RowAngles(*self._computed(positions), torch.arange(len(positions)))

    def _computed(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[B] int64 -> [B, Dh] each."""
        cos, sin = self._rotary(torch.empty(0, dtype=self._dtype), position_ids=positions[None])
        return cos[0].contiguous(), sin[0].contiguous()
