"""Attention heads as a transformers config, or config.json, states them. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from serve_app.architectures.other_heads import OtherHeads

Width = Literal["heads", "kv_heads", "intermediate"]  # what a matrix has a row for


class ConfigSizes(Protocol):
    """What is read of a transformers config; head size and number of key-value heads may be missing, or None."""

    hidden_size: int
    num_attention_heads: int
    intermediate_size: int


@dataclass(frozen=True, slots=True)
class HeadSizes:
    """How many heads attention has, and how large each is."""

    num_heads: int
    num_kv_heads: int
    head_dim: int  # of queries and keys
    value_dim: int

    @property
    def width(self) -> int:
        """Numbers that the cache holds of one token."""
        return self.num_kv_heads * (self.head_dim + self.value_dim)


def complete_head_sizes(
    hidden_size: int, num_heads: int, num_kv_heads: int | None, head_dim: int | None, value_dim: int | None = None
) -> HeadSizes:
    """What a config leaves out: a key-value head for each head, heads that share the hidden size, values like keys."""
    key_dim = head_dim or hidden_size // num_heads
    return HeadSizes(num_heads, num_kv_heads or num_heads, key_dim, value_dim or key_dim)


def latent_head_sizes(num_heads: int, rotated_dim: int, plain_dim: int, value_dim: int) -> HeadSizes:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434), expanded: each head has keys of two parts."""
    return HeadSizes(num_heads, num_heads, rotated_dim + plain_dim, value_dim)


def head_sizes_of(config: ConfigSizes) -> HeadSizes:
    """The heads of a transformers config."""
    num_kv_heads, head_dim = getattr(config, "num_key_value_heads", None), getattr(config, "head_dim", None)
    return complete_head_sizes(config.hidden_size, config.num_attention_heads, num_kv_heads, head_dim)


def other_head_sizes(first: HeadSizes, other: OtherHeads, values: Mapping[str, object]) -> HeadSizes:
    """The heads of a second kind of layers; values: config.json's, or those that it gives for one layer."""
    is_on = other.kv_heads_switch is None or bool(values.get(other.kv_heads_switch))
    num_kv_heads = values.get(other.kv_heads_key) if other.kv_heads_key is not None and is_on else None
    if not isinstance(num_kv_heads, int):
        num_kv_heads = first.num_kv_heads * other.kv_factor
    head_dim = (values.get(other.head_dim_key) if other.head_dim_key is not None else None) or other.head_dim
    if not isinstance(head_dim, int):
        return HeadSizes(first.num_heads, num_kv_heads, first.head_dim, first.value_dim)
    return HeadSizes(first.num_heads, num_kv_heads, head_dim, head_dim)


def num_rows(width: Width, config: ConfigSizes) -> int:
    """Rows of a matrix that has one for each channel of the heads, of the key-value heads, or of the MLP."""
    if width == "intermediate":
        return config.intermediate_size
    heads = head_sizes_of(config)
    return heads.head_dim * (heads.num_heads if width == "heads" else heads.num_kv_heads)
