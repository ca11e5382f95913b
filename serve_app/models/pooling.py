"""From the hidden states of packed texts to one vector each, as sentence-transformers does it."""

from typing import Protocol

import torch
from torch import Tensor, nn

from serve_app.models.packed_attention import PackedEntries


class Pool(Protocol):
    """One vector for each entry."""

    def __call__(self, hidden: Tensor, entries: PackedEntries) -> Tensor:
        """hidden [T, D] -> [B, D]."""
        ...


def pool_first(hidden: Tensor, entries: PackedEntries) -> Tensor:
    """The first token of each entry: hidden [T, D] -> [B, D]."""
    return hidden[entries.starts]


def pool_last(hidden: Tensor, entries: PackedEntries) -> Tensor:
    """The last token of each entry: hidden [T, D] -> [B, D]."""
    return hidden[entries.ends - 1]


def pool_mean(hidden: Tensor, entries: PackedEntries) -> Tensor:
    """The mean of each entry's tokens: hidden [T, D] -> [B, D]."""
    sums = hidden.new_zeros(len(entries.lengths), hidden.shape[1])
    sums.index_add_(0, entries.entry_of, hidden)
    return sums / entries.lengths[:, None].to(hidden.dtype)


POOLS: dict[str, Pool] = {"cls": pool_first, "last": pool_last, "mean": pool_mean}


class Projection(nn.Module):
    """A Dense module of sentence-transformers, after the pooling."""

    def __init__(self, num_inputs: int, num_outputs: int, has_bias: bool, activation: str) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, num_outputs, bias=has_bias)
        self.activation = nn.Tanh() if activation == "tanh" else nn.Identity()

    def forward(self, vectors: Tensor) -> Tensor:
        """vectors [B, D] -> [B, E]."""
        projected: Tensor = self.activation(self.linear(vectors))
        return projected


def normalize(vectors: Tensor) -> Tensor:
    """Length one each: [B, D] -> [B, D]."""
    return torch.nn.functional.normalize(vectors, dim=-1)
