"""Attention among the tokens of each entry of a packed row, without a cache and without padding."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from serve_app.models.fused_attention import must_repeat_heads

PACKED_ATTENTION = "rayshard_packed"


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """Entries of one length: they share a call, and no entry's answer depends on another's."""

    rows: Tensor  # [G * length] int64: places in the packed row
    length: int


class PackedEntries:
    """Which tokens of a packed row [T] belong together."""

    def __init__(self, lengths: Tensor, *, is_causal: bool, has_farther_window: bool = False) -> None:
        self.lengths = lengths  # [B] int64, on the device
        self.is_causal = is_causal
        self.has_farther_window = (
            has_farther_window  # as transformers has it for `is_causal: false`: one token more each way
        )
        self.ends = lengths.cumsum(0)  # [B]
        self.starts = self.ends - lengths  # [B]
        self.entry_of = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)  # [T]
        self.positions = torch.arange(len(self.entry_of), device=lengths.device) - self.starts[self.entry_of]  # [T]
        self._groups = self._group()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """query [H, T, D], key and value [K, T, D] -> output [T, H, D]; window: tokens at this distance are unseen."""
        if window is not None and self.has_farther_window:
            window += 1
        output = torch.empty_like(query.transpose(0, 1))  # [T, H, D]
        for group in self._groups:
            parts = [
                tensor[:, group.rows].view(tensor.shape[0], -1, group.length, tensor.shape[-1]).transpose(0, 1)
                for tensor in (query, key, value)
            ]  # [G, H or K, L, D]
            mask = _window_mask(group.length, window, self.is_causal, query.device)
            num_heads, num_kv_heads = parts[0].shape[1], parts[1].shape[1]
            if must_repeat_heads(query, num_heads, num_kv_heads, has_mask=mask is not None):
                parts[1:] = [one.repeat_interleave(num_heads // num_kv_heads, dim=1) for one in parts[1:]]
            attended = scaled_dot_product_attention(
                parts[0],
                parts[1],
                parts[2],
                attn_mask=mask,
                is_causal=self.is_causal and mask is None,
                scale=scale,
                enable_gqa=num_heads != parts[1].shape[1],
            )
            output[group.rows] = attended.transpose(1, 2).flatten(0, 1)
        return output

    def _group(self) -> list[LengthGroup]:
        by_length: dict[int, list[int]] = {}
        for index, length in enumerate(self.lengths.tolist()):
            if length:
                by_length.setdefault(length, []).append(index)
        groups = []
        for length, members in by_length.items():
            starts = self.starts[torch.tensor(members, device=self.starts.device)]
            rows = (starts[:, None] + torch.arange(length, device=starts.device)).flatten()
            groups.append(LengthGroup(rows, length))
        return groups


def _window_mask(length: int, window: int | None, is_causal: bool, device: torch.device) -> Tensor | None:
    """[L, L] bool: what may be seen; None where the window hides nothing."""
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=device)
    distance = places[:, None] - places
    return (distance.abs() < window) & (distance >= 0) if is_causal else distance.abs() < window


def forward_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_entries: PackedEntries,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D]."""
    assert attention_mask is None, "no mask function is registered for the packed attention"
    if softcap is not None:
        raise NotImplementedError(f"{type(module).__name__} caps its attention scores, which embedding does not")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packed_entries.attend(query[0], key[0], value[0], scale, sliding_window)[None], None
