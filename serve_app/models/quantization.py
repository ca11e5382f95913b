"""Linear layers and embeddings over quantized weights, one small class for each kernel.

Weight-only int8 and int4 compute in bfloat16, whatever the model's dtype. Int8 by int8 on CPU is in int8_linear.py, all
kernels for CUDA are in cuda_linear.py; quantized_kernels.py decides.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from serve_app.models.cuda_linear import (
    CudaLinear,
    CudaProduct,
    Float8RowProduct,
    Int4TileProduct,
    Int8CastProduct,
    Int8RowProduct,
    int4_factors,
    join_cuda,
)
from serve_app.models.int8_linear import Int8Linear, join_int8, make_product
from serve_app.models.packed_linear import KernelLinear, PackedLinear
from serve_app.models.quantized_kernels import DeviceKind, KernelName, WeightForm, decide_kernel
from serve_app.models.quantized_weight import QuantizedWeight
from serve_app.models.torch_dtypes import FLOAT8
from serve_app.types.shards import WeightScheme

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


class CpuInt4Linear(KernelLinear):
    """Weights of at most 4 bits in groups, inputs in bfloat16."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__(weight.values.shape[1], weight.values.shape[0], bias)
        self._group_size = weight.group_size
        self._order = weight.input_order
        shifted = weight.values.to(torch.int32) + 8  # [N, K] in 0 to 15
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(shifted, 1)
        self._factors = int4_factors(weight)
        self.num_bytes += self._packed.nbytes + self._factors.nbytes

    def multiply(self, inputs: Tensor) -> Tensor:
        """In bfloat16."""
        rows = inputs.reshape(-1, self.in_features).to(torch.bfloat16)
        if self._order is not None:
            rows = rows[:, self._order]
        outputs: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows.contiguous(), self._packed, self._group_size, self._factors
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
    name = decide_kernel(scheme, form_of(weight), kind_of(weight.values.device)).name
    if name == "dequantized":
        return DequantizingLinear(weight, bias, scheme)
    if weight.values.device.type != "cpu":
        product = _cuda_product(name, weight)
        num_bytes = product.num_bytes if isinstance(product, Int4TileProduct) else weight.num_bytes
        return CudaLinear(product, weight.values.shape[1], num_bytes, bias)
    if name == "rounded_int8":
        return Int8Linear(make_product(weight), bias)
    return CpuInt4Linear(weight, bias) if name == "packed_int4" else CpuInt8WeightLinear(weight, bias)


def join_linears(linears: Sequence[nn.Module | None]) -> None:
    """Have quantized layers that read one tensor share one product, where their kernels can. Numbers stay the same."""
    int8 = [one for one in linears if isinstance(one, Int8Linear)]
    on_cuda = [one for one in linears if isinstance(one, CudaLinear)]
    if len(int8) == len(linears):
        join_int8(int8)
    elif len(on_cuda) == len(linears):
        join_cuda(on_cuda)


def form_of(weight: QuantizedWeight) -> WeightForm:
    """What a kernel depends on of a weight."""
    is_plain = weight.zero_points is None and weight.input_order is None
    num_outputs, num_inputs = weight.values.shape
    return WeightForm(num_outputs, num_inputs, weight.group_size, is_plain)


def kind_of(device: torch.device) -> DeviceKind:
    """What a kernel depends on of a device."""
    return DeviceKind(device.type, torch.cuda.get_device_capability(device) if device.type == "cuda" else None)


def _cuda_product(name: KernelName, weight: QuantizedWeight) -> CudaProduct:
    if name == "packed_int4":
        return Int4TileProduct.of(weight)
    if name == "scaled_float8":
        return Float8RowProduct(weight.values, weight.scales, weight.input_scale)
    return (Int8RowProduct if name == "rounded_int8" else Int8CastProduct)(weight.values, weight.scales)


def take_hooks(new: nn.Module, old: nn.Module) -> None:
    """Give a module the hooks of the one whose place it takes."""
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))


def num_weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights of a model, quantized or not."""
    quantized = [one for one in model.modules() if isinstance(one, PackedLinear | QuantizedEmbedding)]
    return sum(one.num_bytes for one in quantized) + sum(parameter.nbytes for parameter in model.parameters())
