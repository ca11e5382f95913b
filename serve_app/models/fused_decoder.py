"""Decoders of llama's shape in fewer calls than transformers makes, of the same arithmetic.

A step of decoding waits for each call as much as for the weights: between products that empty the caches, one costs
5 to 10 us. So projections that read one tensor are run as one, queries and keys are rotated together, and what is few
numbers on CPU goes through numpy, whose calls cost a third of torch's. The numbers are equal to the bit. Where kernels
are compiled (models/compiled), each chain of elementwise calls is one call of theirs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers.activations import SiLUActivation

from serve_app.architectures.record import FusedClasses
from serve_app.models.compiled.library import CompiledKernels
from serve_app.models.fast_arrays import has_fast_array
from serve_app.models.packed_linear import multiply_joined
from serve_app.models.step_attention import StageAttention

_MANY_ELEMENTS = 1 << 16  # from here on, torch's threads are faster than numpy


class RotaryTables:
    """Cosines and sines of a step's positions, in the forms in which its layers multiply by them."""

    def __init__(self, cos: Tensor, sin: Tensor, kernels: CompiledKernels | None = None) -> None:
        """Both [1, T, Dh]."""
        num_tokens, head_dim = cos.shape[1:]
        self._kernels = kernels
        self.cos, self.sin = cos.view(num_tokens, 1, head_dim), sin.view(num_tokens, 1, head_dim)
        self._has_arrays = kernels is None and has_fast_array(cos)
        if self._has_arrays:
            self._cos = self.cos.numpy()
            self._signed_sin = self.sin.numpy().reshape(num_tokens, 1, 2, head_dim // 2).copy()
            self._signed_sin[:, :, 0] *= -1

    def rotated(self, heads: Tensor) -> Tensor:
        """heads [T, H, Dh] -> the same shape, each token's contiguous; where kernels are compiled, it is `heads`."""
        if self._kernels is not None:
            self._kernels.rotate(heads, self.cos, self.sin)
            return heads
        num_tokens, num_heads, head_dim = heads.shape
        half = head_dim // 2
        if not self._has_arrays or heads.numel() > _MANY_ELEMENTS:
            turned = torch.cat((-heads[..., half:], heads[..., :half]), dim=-1)
            return heads * self.cos + turned * self.sin
        numbers = heads.numpy()
        outputs = numbers * self._cos
        halves = (num_tokens, num_heads, 2, half)
        parts: Any = outputs.reshape(halves)
        parts += numbers.reshape(halves)[:, :, ::-1] * self._signed_sin
        return torch.from_numpy(outputs)


class FusedDecoderLayer(nn.Module):
    """Takes the place of a transformers module, and its parts.

    Attention with rotary positions in halves (RoFormer, arXiv:2104.09864), after norms of each head where a class has
    them, then a gated SiLU (arXiv:2002.05202); a norm before each of the two.
    """

    def __init__(self, own: Any, *, has_window_in_config: bool = False) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = own.input_layernorm, own.post_attention_layernorm
        attention = own.self_attn
        window_holder = attention.config if has_window_in_config else attention
        self.self_attn = FusedAttention(attention, getattr(window_holder, "sliding_window", None))
        self.mlp = FusedMLP(own.mlp)

    def forward(self, hidden: Tensor, tables: RotaryTables, attention: StageAttention) -> Tensor:
        """hidden [1, T, D] -> the same shape."""
        parts: Any = self._modules
        hidden = parts["self_attn"](parts["input_layernorm"](hidden), tables, attention).add_(hidden)
        outputs: Tensor = parts["mlp"](parts["post_attention_layernorm"](hidden)).add_(hidden)
        return outputs


class FusedAttention(nn.Module):
    """Projections, rotary positions, and the step's attention between them."""

    def __init__(self, own: Any, window: int | None) -> None:
        super().__init__()
        for name, child in own.named_children():
            self.add_module(name, child)
        self._layer_index: int = own.layer_idx
        self.head_dim: int = own.head_dim
        self.scaling: float = own.scaling
        self.window = window

    def forward(self, hidden: Tensor, tables: RotaryTables, attention: StageAttention) -> Tensor:
        """hidden [1, T, D] -> the same shape."""
        heads, num_queries, values = self._project(hidden)
        rotated = tables.rotated(heads).transpose(0, 1)  # [H + K, T, Dh]
        attended = attention.attend(
            *(self._layer_index, rotated[:num_queries], rotated[num_queries:], values.transpose(0, 1)),
            *(self.scaling, self.window, None),
        )  # [T, H, Dh]
        o_proj: Any = self._modules["o_proj"]
        outputs: Tensor = o_proj(attended.reshape(1, hidden.shape[1], -1))
        return outputs

    def _project(self, hidden: Tensor) -> tuple[Tensor, int, Tensor]:
        """hidden [1, T, D] -> queries and keys [T, H + K, Dh], H, and values [T, K, Dh]."""
        parts: Any = self._modules
        projections = (parts["q_proj"], parts["k_proj"], parts["v_proj"])
        shape = (hidden.shape[1], -1, self.head_dim)
        has_norms = "q_norm" in parts
        joined = None if has_norms else multiply_joined(projections, hidden)
        if joined is not None:
            heads = joined.view(shape)
            num_queries, num_keys = (one.out_features // self.head_dim for one in projections[:2])
            return heads[:, : num_queries + num_keys], num_queries, heads[:, num_queries + num_keys :]
        queries, keys, values = (one(hidden).view(shape) for one in projections)
        if has_norms:
            queries, keys = parts["q_norm"](queries), parts["k_norm"](keys)
        return torch.cat((queries, keys), dim=1), queries.shape[1], values


class FusedMLP(nn.Module):
    """The gated SiLU."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = own.gate_proj, own.up_proj, own.down_proj
        self.kernels: CompiledKernels | None = None  # a loader may set them

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [1, T, D] -> the same shape."""
        parts: Any = self._modules
        projections = (parts["gate_proj"], parts["up_proj"])
        joined = multiply_joined(projections, inputs)
        outputs: Tensor
        if joined is not None and self.kernels is not None:
            outputs = parts["down_proj"](self.kernels.silu_product(joined))
            return outputs
        gate, up = (one(inputs) for one in projections) if joined is None else joined.chunk(2, dim=-1)
        if self.kernels is not None:
            outputs = parts["down_proj"](self.kernels.silu_product(torch.cat((gate, up), dim=-1)))
            return outputs
        outputs = parts["down_proj"](silu(gate, inplace=True).mul_(up))
        return outputs


def fuse_layers(model: nn.Module, classes: FusedClasses) -> bool:
    """Replace the layers of a model by fused ones; returns whether there are any."""
    has_any = False
    for module in list(model.modules()):
        child: Any
        for name, child in module.named_children():
            if type(child).__name__ == classes.layer and isinstance(child.mlp.act_fn, SiLUActivation):
                setattr(module, name, FusedDecoderLayer(child, has_window_in_config=classes.has_window_in_config))
                has_any = True
    return has_any
