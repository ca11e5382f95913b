"""Products by kernels that autograd does not know, whose inputs may have gradients all the same."""

from typing import Any, Protocol, cast

import torch
from torch import Tensor


class FrozenProduct(Protocol):
    """A product whose weight gets no gradient."""

    def multiply(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """See Product."""

    def weight(self) -> Tensor:
        """[N, K], unpacked anew."""


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, bias: Tensor | None, product: FrozenProduct) -> Tensor:
        """inputs [..., K] -> [..., N]."""
        ctx.product = product
        return product.multiply(inputs.detach(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """gradients [..., N] of the outputs -> [..., K] of the inputs."""
        (gradient,) = gradients
        return gradient @ ctx.product.weight().to(gradient.dtype), None, None


def multiply_frozen(product: FrozenProduct, inputs: Tensor, bias: Tensor | None) -> Tensor:
    """inputs [..., K] that require gradients -> [..., N]."""
    return cast(Tensor, _Function.apply(inputs, bias, product))  # type: ignore[no-untyped-call]
