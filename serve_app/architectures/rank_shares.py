"""What one tensor rank holds: an even share, and of key-value heads one that others hold too where ranks are more.

Each rank's query heads are whole groups then, or lie in one group, so that they attend to the heads it holds.
(Multi-query attention: arXiv:1911.02150; grouped: arXiv:2305.13245.) No torch.
"""

from collections.abc import Iterable
from dataclasses import replace

from serve_app.architectures.head_sizes import HeadSizes


def even_range(size: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """The rank's share of `size`; shares differ by one where it does not divide."""
    return rank * size // num_ranks, (rank + 1) * size // num_ranks


def can_hold_kv_heads(num_kv_heads: int, num_ranks: int) -> bool:
    """Whether ranks share the heads evenly, or as many ranks hold each of them."""
    return num_kv_heads % num_ranks == 0 or num_ranks % num_kv_heads == 0


def kv_heads_on_rank(num_kv_heads: int, num_ranks: int) -> int:
    """How many of them one rank holds."""
    return max(1, num_kv_heads // num_ranks)


def ranks_of_kv_head(num_kv_heads: int, num_ranks: int) -> int:
    """How many ranks hold the same head."""
    return max(1, num_ranks // num_kv_heads)


def kv_head_range(num_kv_heads: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """First and end of those that a rank holds."""
    first = rank * num_kv_heads // num_ranks
    return first, first + kv_heads_on_rank(num_kv_heads, num_ranks)


def kv_heads_of_layer(heads: HeadSizes, num_query_rows: int, num_key_rows: int) -> int:
    """Of a layer that may be of another kind than `heads`: its matrices have a row for each channel of a head."""
    return heads.num_heads * num_key_rows // num_query_rows


def widest_on_rank(kinds: Iterable[HeadSizes], num_ranks: int) -> HeadSizes:
    """Of the kinds of layers that a model has, the one of whose keys and values a rank holds most; as the model has it.

    A kind of many small heads may be the widest on one rank, and one of few large heads on each of many.
    """
    return max(kinds, key=lambda kind: heads_of_rank(kind, num_ranks).width)


def heads_of_rank(heads: HeadSizes, num_ranks: int) -> HeadSizes:
    """What one rank holds of them."""
    num_kv_heads = kv_heads_on_rank(heads.num_kv_heads, num_ranks)
    return replace(heads, num_heads=heads.num_heads // num_ranks, num_kv_heads=num_kv_heads)
