"""RMSNorm (arXiv:1910.07467) of rows whose columns ranks share: they exchange one sum of squares for each row."""

from typing import Any

import torch
from torch import Tensor, nn

from serve_app.parallel.communicator import Communicator


class SharedRMSNorm(nn.Module):
    """Takes the place of a norm that multiplies by its weight; num_copies: ranks that hold the same columns."""

    def __init__(self, whole: Any, communicator: Communicator, num_copies: int = 1) -> None:
        super().__init__()
        self.weight: Tensor = whole.weight  # [D], to be cut
        self._epsilon: float = whole.variance_epsilon
        self._num_summed: int = whole.weight.shape[0] * num_copies
        self._communicator = communicator

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [..., D / ranks], or D / ranks * copies, of any float dtype -> the same."""
        rows = inputs.to(torch.float32)
        squares = self._communicator.all_reduce(rows.square().sum(dim=-1, keepdim=True))  # [..., 1]
        scaled = rows * torch.rsqrt(squares / self._num_summed + self._epsilon)
        return (self.weight * scaled).to(inputs.dtype)
