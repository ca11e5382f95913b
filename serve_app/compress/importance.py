"""How much layers, heads and MLP channels matter, measured on calibration texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from serve_app.compress.local_model import CausalAttention
from serve_app.engine.loader import load_stage
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.types.shards import ShardSpec


@dataclass(frozen=True, slots=True)
class Importance:
    """Of each layer, larger is more."""

    layers: Tensor  # [L]: block influence, as ShortGPT calls it
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


@torch.inference_mode()
def measure_importance(source: Path, num_layers: int, sequences: Sequence[list[int]]) -> Importance:
    """Run the sequences through the model in `source` layer by layer: no more than one layer's weights are in memory.

    Block influence is 1 - cos(input, output) of a layer (ShortGPT, arXiv:2403.03853); a head's is the norm of what it
    gives, a channel's the size of its activation (Minitron, arXiv:2407.14679).
    """
    layers, heads, channels = _Means(), _Means(), _Means()
    states = [torch.tensor(sequence) for sequence in sequences]  # token ids, then hidden states [T, D]
    first_row = torch.zeros(1, dtype=torch.int64)  # the last stage gives logits, which are not used
    for index in tqdm(range(num_layers), desc="importance", unit="layer", disable=None):
        shard = ShardSpec(index, num_layers, 0, 1, first_layer=index, end_layer=index + 1)
        stage = load_stage(source, "auto", shard, LoneCommunicator(), torch.device("cpu")).stage
        layer: Any = stage.own_layers[0]
        num_kv_heads = stage.config.num_key_value_heads

        def after_layer(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor, layer: int = index) -> None:
            before, after = args[0], output[0] if isinstance(output, tuple) else output
            layers.add(layer, 1 - cosine_similarity(before.double(), after.double(), dim=-1).flatten())

        def before_output(
            _module: nn.Module, args: tuple[Tensor, ...], layer: int = index, num_heads: int = num_kv_heads
        ) -> None:
            grouped = args[0].double().reshape(args[0].shape[0] * args[0].shape[1], num_heads, -1)  # [T, K, .]
            heads.add(layer, grouped.norm(dim=-1))

        def before_down(_module: nn.Module, args: tuple[Tensor, ...], layer: int = index) -> None:
            channels.add(layer, args[0].double().abs().flatten(0, -2))

        layer.register_forward_hook(after_layer)
        layer.self_attn.o_proj.register_forward_pre_hook(before_output)
        layer.mlp.down_proj.register_forward_pre_hook(before_down)
        for place, state in enumerate(states):
            positions, attention = torch.arange(len(state)), CausalAttention([len(state)])
            states[place] = stage.forward(state, positions, attention, first_row)
    return Importance(layers.stacked(), heads.stacked(), channels.stacked())
