"""Gradients through layers that ranks share: the two operators f and g of Megatron-LM (arXiv:1909.08053)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from serve_app.parallel.communicator import Communicator


@contextmanager
def summed_gradients(column_layers: Sequence[nn.Module], communicator: Communicator) -> Iterator[None]:
    """Have the gradients of these layers' inputs be sums over ranks, of what runs forward inside.

    Layers that read one tensor, one after the other, share one sum.
    """
    last: list[tuple[Tensor, Tensor]] = []

    def share(_layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        given = args[0]
        if not given.requires_grad:
            return None
        if not last or last[0][0] is not given:
            summed = cast(Tensor, _SumGradient.apply(given, communicator))  # type: ignore[no-untyped-call]
            last[:] = [(given, summed)]
        return (last[0][1], *args[1:])

    handles = [layer.register_forward_pre_hook(share) for layer in column_layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def summed_output(output: Tensor, communicator: Communicator) -> Tensor:
    """The sum over ranks of a tensor [...] with a gradient, which each rank's part gets whole."""
    return cast(Tensor, _SumOutput.apply(output, communicator))  # type: ignore[no-untyped-call]


class _SumGradient(torch.autograd.Function):
    """f: nothing forward, a sum over ranks backward."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, communicator: Communicator) -> Tensor:
        """given [...] -> itself."""
        ctx.communicator = communicator
        return given.view_as(given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """gradients [...] -> their sum."""
        return ctx.communicator.all_reduce(gradients[0].clone(memory_format=torch.contiguous_format)), None


class _SumOutput(torch.autograd.Function):
    """g: a sum over ranks forward, nothing backward."""

    @staticmethod
    def forward(_ctx: Any, output: Tensor, communicator: Communicator) -> Tensor:
        """output [...] -> its sum."""
        return communicator.all_reduce(output.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """gradients [...] -> themselves."""
        return gradients[0], None
