"""What the parts of a model weigh, and what of it one tensor rank holds."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from serve_app.architectures.rank_shares import even_range, kv_heads_on_rank
from serve_app.types.shards import ShardSpec


@dataclass(frozen=True, slots=True)
class PartWeights:
    """Of one part of a model: all its bytes, and how many numbers it multiplies a token by."""

    whole_bytes: int = 0  # that each tensor rank holds
    cut_bytes: int = 0  # that the ranks share evenly
    kv_bytes: int = 0  # that they share by key-value heads, each of which several hold where they are more
    table_bytes: int = 0  # that they share by tokens of the vocabulary
    expert_bytes: int = 0  # of all these, what only the tokens of an expert need
    num_products: int = 0  # numbers of matrices that every token is multiplied by
    num_kv_products: int = 0  # the same of those that are shared by key-value heads
    num_expert_products: int = 0  # of all experts
    num_kv_heads: int = 1
    num_tokens: int = 1

    def on_rank(self, num_ranks: int, rank: int = 0) -> int:
        """Bytes on one tensor rank."""
        first, end = even_range(self.num_tokens, rank, num_ranks)
        return (
            self.whole_bytes
            + self.cut_bytes // num_ranks
            + self.kv_bytes * kv_heads_on_rank(self.num_kv_heads, num_ranks) // self.num_kv_heads
            + self.table_bytes * (end - first) // self.num_tokens
        )

    def products_on_rank(self, num_ranks: int, expert_share: float) -> float:
        """Numbers of matrices that one tensor rank multiplies a token by, which goes to this share of the experts."""
        held = kv_heads_on_rank(self.num_kv_heads, num_ranks) / self.num_kv_heads
        shared = self.num_products + expert_share * self.num_expert_products
        return shared / num_ranks + self.num_kv_products * held


def sum_parts(parts: Iterable[PartWeights]) -> PartWeights:
    """As one part: they have the same numbers of key-value heads and of tokens, or none that count."""
    listed = list(parts)
    counts = {one.name: sum(getattr(part, one.name) for part in listed) for one in fields(PartWeights)}
    counts["num_kv_heads"] = max((part.num_kv_heads for part in listed), default=1)
    counts["num_tokens"] = max((part.num_tokens for part in listed), default=1)
    return PartWeights(**counts)


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """All parts of a model that generates or embeds."""

    layers: tuple[PartWeights, ...]
    before: PartWeights  # of the first stage: embeddings, which a token reads one row of
    after: PartWeights  # of the last stage: norm and head
    tied: PartWeights  # the embedding as head, where that is apart from it: on another stage, or in another form
    shares_embedding: bool = False  # the head of a single stage is its embedding

    def parts_on(self, shard: ShardSpec) -> list[PartWeights]:
        """Parts of the stage of a shard."""
        parts = list(self.layers[shard.first_layer : shard.end_layer])
        if shard.is_first:
            parts.append(self.before)
        if shard.is_last:
            parts.append(self.after)
        if shard.is_last and not (shard.is_first and self.shares_embedding):
            parts.append(self.tied)
        return parts

    def head_on(self, shard: ShardSpec) -> PartWeights | None:
        """What draws multiply by, of the stage of a shard; None: it is on another."""
        if not shard.is_last:
            return None
        if not shard.is_first or not self.shares_embedding:
            return sum_parts([self.after, self.tied])
        table = replace(self.before, num_products=0) if self.tied.table_bytes else PartWeights()  # the head itself
        return sum_parts([self.after, table])

    def bytes_on(self, shard: ShardSpec) -> int:
        """Bytes that one shard holds."""
        return sum(part.on_rank(shard.num_ranks, shard.rank) for part in self.parts_on(shard))
