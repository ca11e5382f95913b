"""Over how many tensor ranks a checkpoint can be cut, and what attention has on one of them; no torch."""

import math
from collections.abc import Iterator

from serve_app.architectures.head_sizes import HeadSizes
from serve_app.architectures.lookup import ARCHITECTURES
from serve_app.architectures.rank_shares import can_hold_kv_heads, heads_of_rank, widest_on_rank
from serve_app.checkpoints.model_spec import ModelSpec

_MAX_RANKS = 1024  # that are proposed


def has_whole_attention(spec: ModelSpec) -> bool:
    """Whether each tensor rank holds all attention heads."""
    architecture = ARCHITECTURES.get(spec.model_type)
    cut = None if architecture is None else architecture.tensor_cut
    return cut is not None and cut.has_whole_attention


def whole_heads(spec: ModelSpec, num_ranks: int) -> HeadSizes:
    """Of the layers of whose keys and values one of so many ranks holds most, as the model has them."""
    return widest_on_rank(spec.head_kinds, 1 if has_whole_attention(spec) else num_ranks)


def rank_heads(spec: ModelSpec, num_ranks: int) -> HeadSizes:
    """The same as one rank has them: the KV cache is made for these."""
    return heads_of_rank(whole_heads(spec, num_ranks), 1 if has_whole_attention(spec) else num_ranks)


def tensor_problems(spec: ModelSpec, tensor: int) -> list[str]:
    """Every reason why `tensor` ranks cannot share this model."""
    architecture = ARCHITECTURES.get(spec.model_type)
    if tensor > 1 and architecture is not None and architecture.tensor_cut is None:
        return [f"parallel.tensor={tensor} cannot cut model_type={spec.model_type}; use parallel.pipeline"]
    found = list(_misfits(spec, tensor))
    if not found:
        return []
    options = [str(number) for number in range(1, _most_ranks(spec) + 1) if not any(_misfits(spec, number))]
    way_out = " or ".join(filter(None, [", ".join(options[:-1]), options[-1]]))
    return [f"parallel.tensor={tensor} {misfit}; use {way_out}" for misfit in found]


def _misfits(spec: ModelSpec, tensor: int) -> Iterator[str]:
    for name, size in _divided_sizes(spec).items():
        if size % tensor:
            yield f"does not divide {name}={size}"
    for name, size in _kv_heads(spec).items():
        if not can_hold_kv_heads(size, tensor):
            yield f"neither divides {name}={size} nor is a multiple of it"


def _most_ranks(spec: ModelSpec) -> int:
    return min(_MAX_RANKS, math.gcd(*_divided_sizes(spec).values()))


def _divided_sizes(spec: ModelSpec) -> dict[str, int]:
    """By their names, what each rank has an even share of."""
    sizes = {} if has_whole_attention(spec) else {"num_heads": spec.num_heads}
    if spec.intermediate_size is not None:
        sizes["intermediate_size"] = spec.intermediate_size
    return sizes | spec.inner_sizes


def _kv_heads(spec: ModelSpec) -> dict[str, int]:
    """By their names, what each rank has an even share of, or one of."""
    if has_whole_attention(spec):
        return {}
    names = ["num_kv_heads", "num_kv_heads of other layers"]
    names += [f"num_kv_heads of other layers ({index})" for index in range(2, len(spec.head_kinds))]
    return {name: kind.num_kv_heads for name, kind in zip(names, spec.head_kinds, strict=False)}
