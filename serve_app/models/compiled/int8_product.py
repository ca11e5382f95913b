"""Products of int8 by the compiled kernels: the numbers of FBGEMM's between divided and multiplied rows, to the bit."""

from typing import cast

import torch
from torch import Tensor, nn

from serve_app.models.compiled.library import CompiledKernels, Int8Layer
from serve_app.models.int8_linear import Int8Linear, RoundedProduct
from serve_app.models.quantized_weight import QuantizedWeight

_GROUP, _QUAD = 16, 4  # outputs and inputs that lie together, see kernels.cpp
_ZERO = 128  # inputs are unsigned, around it


class CompiledInt8Product:
    """RoundedProduct whose rows are rounded, multiplied and scaled in one call."""

    bias_dtype = torch.float32

    def __init__(self, weight: QuantizedWeight, kernels: CompiledKernels) -> None:
        self._kernels = kernels
        self._shape = num_outputs, num_inputs = weight.values.shape
        num_groups, num_quads = -(-num_outputs // _GROUP), -(-num_inputs // _QUAD)
        values = weight.values.new_zeros(num_groups * _GROUP, num_quads * _QUAD)
        values[:num_outputs, :num_inputs] = weight.values
        self._packed = values.view(num_groups, _GROUP, num_quads, _QUAD).transpose(1, 2).contiguous()
        self._offsets = values.sum(dim=1, dtype=torch.int32) * _ZERO
        self._scales = self._padded(weight.scales.reshape(-1).to(torch.float32))
        self._bias: Tensor | None = None
        self._given_bias: Tensor | None = None
        addresses = (one.data_ptr() for one in (self._packed, self._offsets, self._scales))
        self._layer = Int8Layer(*addresses, None, num_outputs, num_quads)

    def multiply(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """See Product."""
        if inputs.shape[-1] != self._shape[1]:
            raise RuntimeError(f"inputs [..., {inputs.shape[-1]}] do not fit a weight {list(self._shape)}")
        return self._kernels.multiply_int8(self.layer_with(bias), inputs.to(torch.float32)).to(inputs.dtype)

    def layer_with(self, bias: Tensor | None) -> Int8Layer:
        """The weight with the bias [N] that the next products add."""
        if bias is not self._given_bias:
            self._given_bias, self._bias = bias, None if bias is None else self._padded(bias)
            self._layer.bias = None if self._bias is None else self._bias.data_ptr()
        return self._layer

    def weight(self) -> QuantizedWeight:
        """See RoundedProduct."""
        num_outputs, num_inputs = self._shape
        num_groups, num_quads = self._packed.shape[:2]
        values = self._packed.transpose(1, 2).reshape(num_groups * _GROUP, num_quads * _QUAD)
        return QuantizedWeight(
            values[:num_outputs, :num_inputs].contiguous(), self._scales[:num_outputs, None].clone(), 8
        )

    def remade(self, weight: QuantizedWeight) -> "CompiledInt8Product":
        """See RoundedProduct."""
        return CompiledInt8Product(weight, self._kernels)

    def _padded(self, numbers: Tensor) -> Tensor:
        """numbers [N] float32 -> zeros behind them, to whole groups."""
        padded = numbers.new_zeros(self._packed.shape[0] * _GROUP)
        padded[: len(numbers)] = numbers
        return padded


def compile_int8(model: nn.Module, kernels: CompiledKernels) -> None:
    """Have the int8 layers of a model multiply by compiled kernels; one weight at a time is held in both forms."""
    if not kernels.has_int8:
        return
    for join in {id(one.join): one.join for one in model.modules() if isinstance(one, Int8Linear)}.values():
        join.product = CompiledInt8Product(cast(RoundedProduct, join.product).weight(), kernels)
