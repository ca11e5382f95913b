"""Products of weights in float32 and bfloat16 by the compiled kernels, which read a weight from end to end."""

import torch
from torch import Tensor

from serve_app.models.compiled.library import CompiledKernels, FloatLayer
from serve_app.models.frozen_product import multiply_frozen

_GROUP = 16  # outputs that lie together, see float_product.h
_UNIT_INPUTS = {torch.float32: 1, torch.bfloat16: 2}


class CompiledProduct:
    """Product whose sums are float32. No row's answer depends on others."""

    bias_dtype = torch.float32

    def __init__(self, weight: Tensor, kernels: CompiledKernels) -> None:
        """weight [N, K] of a dtype that the kernels serve."""
        self._kernels = kernels
        self._dtype = weight.dtype
        self._shape = num_outputs, num_inputs = weight.shape
        unit_inputs = _UNIT_INPUTS[weight.dtype]
        num_groups, num_pairs = -(-num_outputs // _GROUP), -(-num_inputs // (2 * unit_inputs))
        num_units = 2 * num_pairs
        whole_shape = (num_groups * _GROUP, num_units * unit_inputs)
        if whole_shape != weight.shape:
            padded = weight.new_zeros(whole_shape)
            padded[:num_outputs, :num_inputs] = weight
            weight = padded
        self._packed = weight.view(num_groups, _GROUP, num_units, unit_inputs).transpose(1, 2).contiguous()
        self._bias: Tensor | None = None
        self._given_bias: Tensor | None = None
        self._layer = FloatLayer(self._packed.data_ptr(), None, num_outputs, num_units)

    def multiply(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """See Product; inputs are of the weight's dtype."""
        if inputs.dtype != self._dtype or inputs.shape[-1] != self._shape[1]:
            raise RuntimeError(f"inputs [..., {inputs.shape[-1]}] {inputs.dtype} do not fit a weight {self}")
        if inputs.requires_grad:
            return multiply_frozen(self, inputs, bias)
        return self._kernels.multiply(self.layer_with(bias), inputs)

    def is_even(self, dtype: torch.dtype) -> bool:
        """Whether rows of a dtype are multiplied as they lie, without zeros behind them."""
        return dtype == self._dtype and self._layer.num_units * _UNIT_INPUTS[dtype] == self._shape[1]

    def layer_with(self, bias: Tensor | None) -> FloatLayer:
        """The weight with the bias [N] that the next products add."""
        if bias is not self._given_bias:
            self._given_bias, self._bias = bias, None if bias is None else self._padded(bias)
            self._layer.bias = None if self._bias is None else self._bias.data_ptr()
        return self._layer

    def weight(self) -> Tensor:
        """[N, K], unpacked anew."""
        num_outputs, num_inputs = self._shape
        values = self._packed.transpose(1, 2).reshape(self._packed.shape[0] * _GROUP, -1)
        return values[:num_outputs, :num_inputs]

    def __str__(self) -> str:
        return f"{list(self._shape)} {self._dtype}"

    def _padded(self, bias: Tensor) -> Tensor:
        """[N] -> zeros behind it, to whole groups."""
        padded = bias.new_zeros(self._packed.shape[0] * _GROUP, dtype=torch.float32)
        padded[: len(bias)] = bias
        return padded
