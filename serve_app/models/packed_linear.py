"""Linear layers whose weight is kept in the form that a kernel multiplies by, and is no parameter of torch's."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """Sizes, the bias (a loader may set it later), and what the weight takes in memory."""

    def __init__(self, num_inputs: int, num_outputs: int, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features = num_inputs
        self.out_features = num_outputs
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.num_bytes = 0  # of the weight; the bias is a parameter


class KernelLinear(PackedLinear):
    """A layer that is one call of a kernel, whose shape and dtype need not be the inputs'."""

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [..., K] -> [..., N], of the inputs' dtype."""
        if inputs.numel() == 0:  # a head in a step that draws nothing: kernels for CUDA cannot be launched for no rows
            return inputs.new_zeros(*inputs.shape[:-1], self.out_features)
        outputs = self.multiply(inputs)
        return outputs.view(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    @abstractmethod
    def multiply(self, inputs: Tensor) -> Tensor:
        """inputs [..., K] -> [M, N] of any float dtype, the bias added."""


class Product(Protocol):
    """A weight [N, K], of one layer or of several side by side, and how inputs are multiplied by it."""

    bias_dtype: torch.dtype  # in which biases are added

    def multiply(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """inputs [..., K], bias [N] of bias_dtype -> [..., N] of the inputs' dtype."""


class JoinableLinear(PackedLinear):
    """A layer of a product that it may share with others."""

    def __init__(self, product: Product, num_inputs: int, num_outputs: int, bias: Tensor | None) -> None:
        super().__init__(num_inputs, num_outputs, bias)
        self.join = Join(product, [self])
        self._index = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [..., K] -> [..., N], of the inputs' dtype."""
        join = self.join
        return join.multiply(inputs) if join.is_lone else join.take(self._index, inputs)

    @property
    def rows(self) -> slice:
        """Which of the shared weight's rows are this layer's."""
        end = sum(self.join.sizes[: self._index + 1])
        return slice(end - self.out_features, end)


class Join:
    """One product for the layers that read one tensor: the first to ask computes it, the others take their columns.

    It is dropped once all have taken theirs, and computed again for a layer that asks a second time.
    """

    def __init__(self, product: Product, linears: Sequence[JoinableLinear]) -> None:
        self.product = product
        self.is_lone = len(linears) == 1
        self.sizes = [one.out_features for one in linears]
        self._linears = list(linears)
        self._source: Tensor | None = None
        self._outputs: Sequence[Tensor] = ()
        self._bias: Tensor | None = None  # [N], once it has been asked for
        self._has_bias = False
        self._waiting = 0  # a bit for each layer that has not taken its columns

    def take(self, index: int, inputs: Tensor) -> Tensor:
        """inputs [..., K] -> this layer's outputs [..., N]."""
        own = 1 << index
        if inputs is not self._source or not self._waiting & own:
            self._source = inputs
            self._outputs = torch.split_with_sizes(self.multiply(inputs), self.sizes, dim=-1)
            self._waiting = (1 << len(self.sizes)) - 1
        output = self._outputs[index]
        self._waiting &= ~own
        if not self._waiting:
            self._source, self._outputs = None, ()
        return output

    def multiply(self, inputs: Tensor) -> Tensor:
        """inputs [..., K] -> the outputs of all layers [..., N]."""
        return self.product.multiply(inputs, self._bias if self._has_bias else self.bias)

    @property
    def bias(self) -> Tensor | None:
        """Of all layers [N], from the first time on what it was then."""
        if not self._has_bias:
            self._bias, self._has_bias = self._joined_bias(), True
        return self._bias

    def _joined_bias(self) -> Tensor | None:
        """Of all layers; they are set while a model is loaded, and stay."""
        biases = [one.bias for one in self._linears]
        some = next((one for one in biases if one is not None), None)
        if some is None:
            return None
        parts = [some.new_zeros(size) if one is None else one for one, size in zip(biases, self.sizes, strict=True)]
        return torch.cat(parts).to(self.product.bias_dtype)


def share_product(product: Product, linears: Sequence[JoinableLinear]) -> None:
    """Have layers that read one tensor share the product of their weights, one below the other."""
    join = Join(product, linears)
    for index, linear in enumerate(linears):
        linear.join, linear._index = join, index


def multiply_joined(linears: Sequence[nn.Module], inputs: Tensor) -> Tensor | None:
    """The outputs of layers that share one product, side by side [..., N]; None: they do not share one."""
    first, last = linears[0], linears[-1]
    if not isinstance(first, JoinableLinear) or not isinstance(last, JoinableLinear) or first.join is not last.join:
        return None
    join = first.join
    return join.multiply(inputs) if len(join.sizes) == len(linears) else None
