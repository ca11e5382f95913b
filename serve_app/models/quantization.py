"""Linear layers and embeddings over quantized weights, one small class for each kernel.

Weight-only int8 and int4 compute in bfloat16, whatever the model's dtype. Int8 by int8 is in int8_linear.py.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from serve_app.models.int8_linear import Int8Linear, make_product
from serve_app.models.packed_linear import KernelLinear, PackedLinear
from serve_app.models.quantized_weight import QuantizedWeight
from serve_app.models.torch_dtypes import FLOAT8
from serve_app.types.shards import WeightScheme

_INT4_GROUPS = (32, 64, 128, 256)
_INT4_INNER_TILES = 8  # of the CUDA layout
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)


class CpuInt8WeightLinear(KernelLinear):
    """Int8 weights of one scale per output, inputs in bfloat16."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__(weight.values.shape[1], weight.values.shape[0], bias)
        self._values = weight.values
        self._scales = weight.scales.view(-1).to(torch.bfloat16)
        self.num_bytes += self._values.nbytes + self._scales.nbytes

    def multiply(self, inputs: Tensor) -> Tensor:
        """In bfloat16."""
        rows = inputs.reshape(-1, self.in_features).to(torch.bfloat16)
        outputs: Tensor = torch.ops.aten._weight_int8pack_mm(rows, self._values, self._scales)
        return outputs if self.bias is None else outputs + self.bias


class Int4Linear(KernelLinear):
    """Weights of at most 4 bits in groups, inputs in bfloat16: torch's kernels for CPU and, as tinygemm, for CUDA."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__(weight.values.shape[1], weight.values.shape[0], bias)
        self._group_size = weight.group_size
        self._order = weight.input_order
        shifted = weight.values.to(torch.int32) + 8  # [N, K] in 0 to 15
        zeros = torch.zeros_like(weight.scales) if weight.zero_points is None else weight.zero_points
        offsets = -zeros.to(torch.float32) * weight.scales  # the kernels give (q - 8) * scale + offset
        self._scales = torch.stack([weight.scales.t(), offsets.t()], dim=2).to(torch.bfloat16).contiguous()  # [G, N, 2]
        if weight.values.device.type == "cpu":
            self._kernel: Any = torch.ops.aten._weight_int4pack_mm_for_cpu
            self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(shifted, 1)
        else:
            pairs = (shifted[:, ::2] << 4 | shifted[:, 1::2]).to(torch.uint8)
            self._kernel = torch.ops.aten._weight_int4pack_mm
            self._packed = torch.ops.aten._convert_weight_to_int4pack(pairs, _INT4_INNER_TILES)
        self.num_bytes += self._packed.nbytes + self._scales.nbytes

    def multiply(self, inputs: Tensor) -> Tensor:
        """In bfloat16."""
        rows = inputs.reshape(-1, self.in_features).to(torch.bfloat16)
        if self._order is not None:
            rows = rows[:, self._order]
        outputs: Tensor = self._kernel(rows.contiguous(), self._packed, self._group_size, self._scales)
        return outputs if self.bias is None else outputs + self.bias


class CudaFloat8Linear(KernelLinear):
    """Float8 weights and rows, a scale for each output, and each row or all: `_scaled_mm` (Hopper and later)."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__(weight.values.shape[1], weight.values.shape[0], bias)
        self._columns = weight.values.t()  # [K, N], column-major as the kernel wants
        self._scales = weight.scales.view(1, -1)
        self._input_scale = weight.input_scale
        self.num_bytes += weight.num_bytes

    def multiply(self, inputs: Tensor) -> Tensor:
        """In float8, sums in float32."""
        rows, scales = round_to_float8(inputs.reshape(-1, self.in_features), self._input_scale)
        outputs = torch._scaled_mm(
            rows,
            self._columns,
            scale_a=scales,
            scale_b=self._scales,
            out_dtype=torch.bfloat16,
        )
        return outputs if self.bias is None else outputs + self.bias


class DequantizingLinear(KernelLinear):
    """Any quantized weight, made whole for each call: small in memory, and slow; where no kernel takes its shape."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, scheme: WeightScheme | None = None) -> None:
        super().__init__(weight.values.shape[1], weight.values.shape[0], bias)
        self._weight = weight
        self._has_float8_inputs = scheme is not None and scheme.is_float and scheme.has_quantized_inputs
        self._input_group = None if scheme is None or scheme.block_rows is None else scheme.group_size
        self.num_bytes += weight.num_bytes

    def multiply(self, inputs: Tensor) -> Tensor:
        """In the inputs' dtype; inputs are rounded as the float8 kernel rounds them, so quality is the same."""
        rows = inputs.reshape(-1, self.in_features)
        if self._has_float8_inputs:
            rows = self._rounded(rows)
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        return linear(rows, self._weight.dequantized(inputs.dtype), bias)

    def _rounded(self, rows: Tensor) -> Tensor:
        """rows [M, K] -> the same, as what float8 numbers stand for."""
        size = self._input_group or self.in_features
        groups = pad(rows, (0, -self.in_features % size)).view(-1, size)  # [M * G, K / G]
        rounded, scales = round_to_float8(groups, self._weight.input_scale)
        return (rounded.to(torch.float32) * scales).view(len(rows), -1)[:, : self.in_features].to(rows.dtype)


def round_to_float8(rows: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """rows [M, K] of any float dtype -> the nearest [M, K] float8_e4m3, and their scales [M, 1] float32.

    scale [] float32 is that of all rows; None: each has its own.
    """
    wide = rows.to(torch.float32)
    largest = torch.finfo(FLOAT8).max
    if scale is not None:
        return (wide / scale).clamp_(-largest, largest).to(FLOAT8), scale.expand(len(rows), 1).contiguous()
    scales = (wide.abs().amax(dim=-1, keepdim=True) / largest).clamp_(min=torch.finfo(torch.float32).tiny)
    return (wide / scales).clamp_(-largest, largest).to(FLOAT8), scales


class QuantizedEmbedding(nn.Module):
    """A table of quantized rows; `scale` is what some models multiply their embeddings by."""

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype, scale: Tensor | None = None) -> None:
        super().__init__()
        self._weight = weight
        self._dtype = dtype
        self._scale = scale
        self.num_bytes = weight.num_bytes

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] int64 -> [..., D] of the model's dtype."""
        weight = self._weight
        flat = ids.reshape(-1)
        zeros = None if weight.zero_points is None else weight.zero_points[flat]
        rows = QuantizedWeight(weight.values[flat], weight.scales[flat], weight.bits, zeros).dequantized(self._dtype)
        embedded = rows.view(*ids.shape, -1)
        return embedded if self._scale is None else embedded * self._scale.to(self._dtype)


def make_linear(weight: QuantizedWeight, bias: Tensor | None, scheme: WeightScheme) -> PackedLinear:
    """The fastest kernel that takes this weight on its device."""
    num_outputs, num_inputs = weight.values.shape
    is_cpu = weight.values.device.type == "cpu"
    is_plain = weight.scales.shape[1] == 1 and weight.zero_points is None and weight.input_order is None
    if scheme.is_float:
        can_run = not is_cpu and is_plain and num_inputs % 16 == 0 and num_outputs % 16 == 0
        if can_run and scheme.has_quantized_inputs:
            return CudaFloat8Linear(weight, bias)
        return DequantizingLinear(weight, bias, scheme)
    if scheme.bits == 8 and is_plain and scheme.has_quantized_inputs:
        product = make_product(weight)
        return DequantizingLinear(weight, bias) if product is None else Int8Linear(product, bias)
    if scheme.bits == 8 and is_plain and is_cpu and num_inputs % 16 == 0:  # at others the kernel reads past its rows
        return CpuInt8WeightLinear(weight, bias)
    if scheme.bits <= 4 and _fits_int4(weight, is_cpu=is_cpu):
        return Int4Linear(weight, bias)
    return DequantizingLinear(weight, bias)


def _fits_int4(weight: QuantizedWeight, *, is_cpu: bool) -> bool:
    num_outputs, num_inputs = weight.values.shape
    if weight.group_size not in _INT4_GROUPS:
        return False
    if is_cpu:
        return num_outputs % 16 == 0 and num_inputs % 2 == 0
    return num_outputs % 8 == 0 and num_inputs % (16 * _INT4_INNER_TILES) == 0


def take_hooks(new: nn.Module, old: nn.Module) -> None:
    """Give a module the hooks of the one whose place it takes."""
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))


def num_weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights of a model, quantized or not."""
    quantized = [one for one in model.modules() if isinstance(one, PackedLinear | QuantizedEmbedding)]
    return sum(one.num_bytes for one in quantized) + sum(parameter.nbytes for parameter in model.parameters())
