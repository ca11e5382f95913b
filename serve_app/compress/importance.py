"""How much layers, heads and MLP channels matter, by what calibration texts make of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Importance:
    """Of each layer, larger is more."""

    blocks: Tensor  # [L]: block influence
    heads: Tensor  # [L, K]: of the key-value heads with the query heads that share them
    channels: Tensor  # [L, I]: of the MLP


class _Means:
    """Means over tokens, added up batch by batch."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}

    def add(self, layer: int, values: Tensor) -> None:
        """values [T, ...]."""
        total = values.sum(dim=0)
        self._sums[layer] = self._sums[layer] + total if layer in self._sums else total
        self._counts[layer] = self._counts.get(layer, 0) + len(values)

    def stacked(self) -> Tensor:
        """[L, ...] float64."""
        return torch.stack([self._sums[layer] / self._counts[layer] for layer in sorted(self._sums)])


@torch.no_grad()
def measure_importance(model: PreTrainedModel, sequences: Sequence[list[int]]) -> Importance:
    """Block influence is 1 - cos(input, output) of a layer (ShortGPT, arXiv:2403.03853); a head's is the norm of what
    it gives, a channel's the size of its activation (Minitron, arXiv:2407.14679)."""
    blocks, heads, channels = _Means(), _Means(), _Means()
    handles = []
    num_kv_heads = model.config.num_key_value_heads
    for index, layer in enumerate(model.model.layers):

        def after_layer(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor, layer: int = index) -> None:
            before, after = args[0], output[0] if isinstance(output, tuple) else output
            blocks.add(layer, 1 - cosine_similarity(before.double(), after.double(), dim=-1).flatten())

        def before_output(_module: nn.Module, args: tuple[Tensor, ...], layer: int = index) -> None:
            grouped = args[0].double().reshape(args[0].shape[0] * args[0].shape[1], num_kv_heads, -1)  # [T, K, .]
            heads.add(layer, grouped.norm(dim=-1))

        def before_down(_module: nn.Module, args: tuple[Tensor, ...], layer: int = index) -> None:
            channels.add(layer, args[0].double().abs().flatten(0, -2))

        handles += [
            layer.register_forward_hook(after_layer),
            layer.self_attn.o_proj.register_forward_pre_hook(before_output),
            layer.mlp.down_proj.register_forward_pre_hook(before_down),
        ]
    for sequence in sequences:
        model(torch.tensor([sequence]), use_cache=False)
    for handle in handles:
        handle.remove()
    return Importance(blocks.stacked(), heads.stacked(), channels.stacked())
