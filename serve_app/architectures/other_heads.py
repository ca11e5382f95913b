"""Layers of a second kind, whose keys and values have another shape."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherHeads:
    """Keys and values of a second kind of layers, where it differs from the first."""

    kv_factor: int = 1  # so many times the key-value heads of the first
    kv_heads_key: str | None = None  # or as many as this key of config.json says
    kv_heads_switch: str | None = None  # where this one is true
    head_dim_key: str | None = None
    head_dim: int | None = None  # what a missing head_dim_key means
