"""Attention heads as a transformers config, or config.json, states them. No torch."""

from dataclasses import dataclass
from typing import Literal, Protocol

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
    head_dim: int


def complete_head_sizes(hidden_size: int, num_heads: int, num_kv_heads: int | None, head_dim: int | None) -> HeadSizes:
    """What a config leaves out: a key-value head for each head, and heads that share the hidden size."""
    return HeadSizes(num_heads, num_kv_heads or num_heads, head_dim or hidden_size // num_heads)


def head_sizes_of(config: ConfigSizes) -> HeadSizes:
    """The heads of a transformers config."""
    num_kv_heads, head_dim = getattr(config, "num_key_value_heads", None), getattr(config, "head_dim", None)
    return complete_head_sizes(config.hidden_size, config.num_attention_heads, num_kv_heads, head_dim)


def num_rows(width: Width, config: ConfigSizes) -> int:
    """Rows of a matrix that has one for each channel of the heads, of the key-value heads, or of the MLP."""
    if width == "intermediate":
        return config.intermediate_size
    heads = head_sizes_of(config)
    return heads.head_dim * (heads.num_heads if width == "heads" else heads.num_kv_heads)
