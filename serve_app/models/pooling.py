"""From the hidden states of packed texts to one vector each, as sentence-transformers does it."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from serve_app.models.packed_attention import PackedEntries


@dataclass(frozen=True, slots=True)
class PooledTokens:
    """Which tokens of each entry count: all, or those after its prompt, which leaves at least one."""

    entries: PackedEntries
    num_skipped: Tensor | None = None  # [B] int64: tokens of the prompt, at the beginning; None: none

    def kept(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [T, D] -> those that count [K, D], the entry of each [K], its place in its entry [K]."""
        entries = self.entries
        if self.num_skipped is None:
            return hidden, entries.entry_of, entries.positions
        is_kept = entries.positions >= self.num_skipped[entries.entry_of]
        return hidden[is_kept], entries.entry_of[is_kept], entries.positions[is_kept]


class Pool(Protocol):
    """One vector for each entry."""

    def __call__(self, hidden: Tensor, tokens: PooledTokens) -> Tensor:
        """hidden [T, D] -> [B, D]."""
        ...


def pool_first(hidden: Tensor, tokens: PooledTokens) -> Tensor:
    """The first token of each entry: hidden [T, D] -> [B, D]."""
    starts = tokens.entries.starts
    return hidden[starts if tokens.num_skipped is None else starts + tokens.num_skipped]


def pool_last(hidden: Tensor, tokens: PooledTokens) -> Tensor:
    """The last token of each entry: hidden [T, D] -> [B, D]."""
    return hidden[tokens.entries.ends - 1]


def pool_mean(hidden: Tensor, tokens: PooledTokens) -> Tensor:
    """The mean of each entry's tokens: hidden [T, D] -> [B, D]."""
    return _sums(hidden, tokens) / _numbers(tokens)


def pool_mean_sqrt_len(hidden: Tensor, tokens: PooledTokens) -> Tensor:
    """The sum of each entry's tokens by the root of their number: hidden [T, D] -> [B, D]."""
    return _sums(hidden, tokens) / _numbers(tokens).sqrt()


def pool_max(hidden: Tensor, tokens: PooledTokens) -> Tensor:
    """The greatest of each number among an entry's tokens: hidden [T, D] -> [B, D]."""
    kept, entry_of, _ = tokens.kept(hidden)
    greatest = hidden.new_full((len(tokens.entries.lengths), hidden.shape[1]), -torch.inf)
    return greatest.scatter_reduce_(0, entry_of[:, None].expand_as(kept), kept, "amax")


def pool_weighted_mean(hidden: Tensor, tokens: PooledTokens) -> Tensor:
    """The mean of each entry's tokens, the first counted once, the next twice: hidden [T, D] -> [B, D]."""
    kept, entry_of, positions = tokens.kept(hidden)
    weights = (positions + 1).to(hidden.dtype)[:, None]
    shape = (len(tokens.entries.lengths), hidden.shape[1])
    sums = hidden.new_zeros(shape).index_add_(0, entry_of, kept * weights)
    return sums / hidden.new_zeros(shape[0], 1).index_add_(0, entry_of, weights)


def _sums(hidden: Tensor, tokens: PooledTokens) -> Tensor:
    kept, entry_of, _ = tokens.kept(hidden)
    return hidden.new_zeros(len(tokens.entries.lengths), hidden.shape[1]).index_add_(0, entry_of, kept)


def _numbers(tokens: PooledTokens) -> Tensor:
    """How many tokens of each entry count: [B, 1]."""
    lengths = tokens.entries.lengths
    return (lengths if tokens.num_skipped is None else lengths - tokens.num_skipped)[:, None].float()


POOLS: dict[str, Pool] = {
    "cls": pool_first,
    "last": pool_last,
    "mean": pool_mean,
    "max": pool_max,
    "mean_sqrt_len": pool_mean_sqrt_len,
    "weightedmean": pool_weighted_mean,
}
