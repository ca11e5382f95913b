"""Decoding in few calls of torch alone: all sequences padded to the longest."""

import torch
import torch.nn.functional as F
from torch import Tensor

from serve_app.engine.attention.backend import DecodeRows, slots_of


class PaddedBackend:
    """DecodeBackend that copies the keys of all sequences out of the cache, then attends over them at once."""

    is_graph_safe = True  # with a `max_length` that stays
    is_compiled = False

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def decode(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        decoded: DecodeRows,
        scaling: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """See DecodeBackend."""
        count = decoded.max_length if window is None else min(decoded.max_length, window)
        first = (decoded.lengths - count).clamp(min=0)  # [B]
        slots = slots_of(decoded, first, count, self._block_size)  # [B, L]
        num_seen = decoded.lengths - first
        is_seen = torch.arange(count, device=query.device) < num_seen[:, None]  # [B, L]
        key, value = _pages(keys, slots, is_seen), _pages(values, slots, is_seen)
        num_rows, num_heads, head_dim = query.shape
        num_kv_heads = key.shape[1]
        grouped = query.reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)  # [B, K, G, Dh]
        mask = is_seen[:, None, None]
        if softcap is None and sinks is None:
            output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
        else:
            output = _attend_by_scores(grouped, key, value, scaling, mask, softcap, sinks)
        return output.reshape(num_rows, num_heads, value.shape[-1])


def _pages(cache: Tensor, slots: Tensor, is_seen: Tensor) -> Tensor:
    """[num_slots, K, D] at slots [B, L] -> [B, K, L, D]; zeros where nothing is seen, as a cache may hold NaN there."""
    found = cache.index_select(0, slots.reshape(-1)).view(*slots.shape, *cache.shape[1:])
    return found.masked_fill_(~is_seen[:, :, None, None], 0).transpose(1, 2)


def _attend_by_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    mask: Tensor,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """query [B, K, G, Dh], key [B, K, L, Dh], value [B, K, L, Dv], mask [B, 1, 1, L], sinks [H] -> [B, K, G, Dv]."""
    scores = query @ key.transpose(2, 3) * scaling  # [B, K, G, L]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        beside = sinks.to(scores.dtype).view(1, *query.shape[1:3], 1).expand(*query.shape[:3], 1)
        scores = torch.cat((scores, beside), dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return weights[..., : key.shape[2]] @ value
