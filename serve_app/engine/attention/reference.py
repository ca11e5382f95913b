"""Attention of one sequence at a time over keys that lie in a row: what all backends are held against."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from serve_app.models.fused_attention import must_repeat_heads


def attend_one(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """One sequence: query [H, q, Dh], its last q positions of keys [L, K, Dh] and values [L, K, Dv] -> [q, H, Dv]."""
    num_heads, num_queries, _ = query.shape
    num_keys, num_kv_heads, _ = keys.shape
    if window is not None and num_queries == 1 and num_keys > window:
        keys, values = keys[-window:], values[-window:]
        num_keys = window
    key, value = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]  # [1, K, L, Dh]
    if softcap is not None or sinks is not None:
        mask = None if num_queries == 1 else _visible(num_queries, num_keys, window, query.device)
        return _attend_by_scores(query, key[0], value[0], scaling, mask, softcap, sinks)
    if num_queries == 1:
        return attend_last(query, key, value, scaling)
    is_windowed = window is not None and num_keys > window
    if must_repeat_heads(query, num_heads, num_kv_heads, has_mask=is_windowed):
        key, value = (one.repeat_interleave(num_heads // num_kv_heads, dim=1) for one in (key, value))
    mask = _visible(num_queries, num_keys, window, query.device) if is_windowed else None
    is_causal = mask is None and num_queries == num_keys
    output = F.scaled_dot_product_attention(
        query[None],
        key,
        value,
        attn_mask=mask if is_causal or is_windowed else causal_lower_right(num_queries, num_keys),
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=key.shape[1] != num_heads,
    )
    return output[0].transpose(0, 1)


def attend_last(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """A sequence's last token, that sees all: query [H, 1, Dh], key [1, K, L, Dh], value [1, K, L, Dv] -> [1, H, Dv].

    The heads that share a key-value head become its queries: all see all keys, so no mask is needed.
    """
    num_heads, _, head_dim = query.shape
    num_kv_heads, value_dim = key.shape[1], value.shape[-1]
    grouped = query.view(1, num_kv_heads, num_heads // num_kv_heads, head_dim)
    output = F.scaled_dot_product_attention(grouped, key, value, scale=scaling)
    return output.view(1, num_heads, value_dim)


def _visible(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees: [q, L] bool."""
    positions = torch.arange(num_keys, device=device)
    queries = positions[num_keys - num_queries :, None]
    mask = positions[None] <= queries
    return mask if window is None else mask & (positions[None] > queries - window)


def _attend_by_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Scores squeezed by tanh (Gemma 2, arXiv:2408.00118), or beside a sink's (arXiv:2309.17453).

    query [H, q, Dh], key [K, L, Dh], value [K, L, Dv], sinks [H] -> [q, H, Dv].
    """
    num_groups = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(num_groups, dim=0), value.repeat_interleave(num_groups, dim=0)
    scores = query @ key.transpose(1, 2) * scaling  # [H, q, L]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        beside = torch.cat((scores, sinks.view(-1, 1, 1).expand(-1, scores.shape[1], 1).to(scores.dtype)), dim=-1)
        weights = beside.softmax(dim=-1, dtype=torch.float32)[..., :-1].to(query.dtype)
        return (weights @ value).transpose(0, 1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(0, 1)
