"""A quantized matrix outside any kernel: integers (or float8) and their scales."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from serve_app.models.torch_dtypes import FLOAT8
from serve_app.types.shards import WeightScheme

_MAX_FLOAT8 = torch.finfo(FLOAT8).max


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A matrix [N, K] as w = (values - zero_points) * scales; G groups of inputs share a scale, G = 1: all of a row."""

    values: Tensor  # [N, K] int8, or float8_e4m3fn
    scales: Tensor  # [N, G] float32
    bits: int
    zero_points: Tensor | None = None  # [N, G] int8; None: zero
    input_order: Tensor | None = None  # [K] int64: which input each column belongs to; None: its own
    input_scale: Tensor | None = None  # [] float32: of inputs that are rounded too; None: each row finds its own

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.values.shape[1] // self.scales.shape[1]

    @property
    def num_bytes(self) -> int:
        """Of values and scales as they are here."""
        parts = [self.values, self.scales, self.zero_points, self.input_order]
        return sum(part.nbytes for part in parts if part is not None)

    def dequantized(self, dtype: torch.dtype = torch.float32, *, through: torch.dtype | None = None) -> Tensor:
        """The matrix [N, K] that the numbers stand for, columns in the inputs' own order.

        through: dtype of what is written in between; None: float32 on CPU, else `dtype`, in 7 bytes of traffic for 19.
        The result is the same: numbers less zero points have 9 bits, and products are made in float32.
        """
        num_rows, num_columns = self.values.shape
        through = through or (torch.float32 if self.values.device.type == "cpu" else dtype)
        grouped = self.values.to(through).view(num_rows, self.scales.shape[1], -1)  # [N, G, K / G]
        if self.zero_points is not None:
            grouped = grouped - self.zero_points.to(through)[..., None]
        matrix = torch.mul(grouped, self.scales[..., None], out=grouped).view(num_rows, num_columns)
        if self.input_order is not None:
            ordered = torch.empty_like(matrix)
            ordered[:, self.input_order] = matrix
            matrix = ordered
        return matrix.to(dtype)

    def to(self, device: torch.device) -> "QuantizedWeight":
        """The same on a device."""
        names = ("values", "scales", "zero_points", "input_order", "input_scale")
        parts = {name: part for name in names if (part := getattr(self, name)) is not None}
        return replace(self, **{name: part.to(device) for name, part in parts.items()})


def quantize_weight(matrix: Tensor, scheme: WeightScheme) -> QuantizedWeight:
    """The nearest numbers to a matrix [N, K] of any float dtype, symmetric: scale = max|w| / (2^(bits - 1) - 1).

    (Round-to-nearest as in LLM.int8, arXiv:2208.07339.) Groups must divide K.
    """
    num_rows, num_columns = matrix.shape
    group_size = scheme.group_size or num_columns
    assert num_columns % group_size == 0, "groups divide the inputs: checked where settings are"
    grouped = matrix.to(torch.float32).view(num_rows, -1, group_size)  # [N, G, K / G]
    limit = _MAX_FLOAT8 if scheme.is_float else float(2 ** (scheme.bits - 1) - 1)
    scales = (grouped.abs().amax(dim=2) / limit).clamp_(min=torch.finfo(torch.float32).tiny)  # [N, G]
    return QuantizedWeight(round_to(grouped, scales, scheme).view(num_rows, num_columns), scales, scheme.bits)


def round_to(grouped: Tensor, scales: Tensor, scheme: WeightScheme) -> Tensor:
    """grouped [N, G, g] float32, scales [N, G] -> the nearest numbers [N, G, g] int8, or float8."""
    scaled = grouped / scales[..., None]
    if scheme.is_float:
        return scaled.clamp_(-_MAX_FLOAT8, _MAX_FLOAT8).to(FLOAT8)
    lowest = -(2 ** (scheme.bits - 1))
    return scaled.round_().clamp_(lowest, -lowest - 1).to(torch.int8)
