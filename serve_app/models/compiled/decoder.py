"""Layers of a decoder in one call of the compiled kernels, in steps in which every sequence decodes.

What lies between two products takes less time than a call from Python and the threads' meeting around it. The numbers
are those of the layers' own forwards, to the bit.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from serve_app.models.compiled.float_product import CompiledProduct
from serve_app.models.compiled.int8_product import CompiledInt8Product
from serve_app.models.compiled.library import CompiledKernels, DecoderHead, DecoderLayer, DecoderProduct, DecoderStep
from serve_app.models.compiled.row_angles import RowAngles
from serve_app.models.fused_decoder import FusedDecoderLayer
from serve_app.models.fused_norm import CompiledRMSNorm
from serve_app.models.packed_linear import JoinableLinear
from serve_app.models.step_attention import PagedRows


@dataclass(frozen=True, slots=True)
class _Shape:
    """What all layers have in common."""

    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


class CompiledDecoder:
    """A stage's layers, over one KV cache at a time."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        kernels: CompiledKernels,
        dtype: torch.dtype,
        last: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        """last: the norm and the head behind the layers, on the last stage.

        Raises UnfitLayersError where a layer is not wholly of compiled parts.
        """
        self._kernels = kernels
        self._dtype = dtype
        shapes = {_shape_of(layer) for layer in layers}
        if len(shapes) != 1:
            raise UnfitLayersError("layers of several shapes")
        (self._shape,) = shapes
        self._layers = (DecoderLayer * len(layers))(*(self._described(layer) for layer in layers))
        self._memory = -1  # of the KV cache whose addresses the layers have; nothing here holds it
        self._modules = [*layers, *(last or ())]  # whose weights the addresses are of
        self._head, self._vocab_size = self._described_head(last)

    @property
    def has_head(self) -> bool:
        """Whether it can give logits."""
        return self._head is not None

    def run(self, hidden: Tensor, angles: RowAngles, rows: PagedRows, logit_rows: Tensor | None = None) -> Tensor:
        """One token of each sequence: hidden [B, D] -> [B, D], or logits [N, V] of logit_rows [N] int64.

        Stores the tokens' keys and values.
        """
        if self._memory != rows.memory:
            self._take_cache(rows)
        hidden, shape = hidden.contiguous(), self._shape
        logits = None if logit_rows is None else hidden.new_empty(len(logit_rows), self._vocab_size)
        asked: tuple[int, int | None]
        if logits is None or logit_rows is None or not len(logit_rows):  # a prompt's token may want none
            outputs, asked = torch.empty_like(hidden), (0, None)
        else:
            outputs, asked = logits, (len(logit_rows), logit_rows.data_ptr())
        step = DecoderStep(
            *(len(hidden), shape.width, shape.mlp_width, shape.num_heads, shape.num_kv_heads, shape.head_dim),
            *(rows.block_size, rows.tables.shape[1]),
            *(rows.slots.data_ptr(), rows.lengths.data_ptr(), rows.tables.data_ptr()),
            *(angles.places.data_ptr(), angles.cos.data_ptr(), angles.sin.data_ptr(), hidden.data_ptr()),
            *(*asked, outputs.data_ptr()),
        )
        self._kernels.decode(self._dtype, step, self._layers, self._head)
        return outputs if logits is None else logits

    def _take_cache(self, rows: PagedRows) -> None:
        self._memory = rows.memory
        for layer, keys, values in zip(self._layers, rows.keys, rows.values, strict=True):
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()

    def _described_head(self, last: tuple[nn.Module, nn.Module] | None) -> tuple[DecoderHead | None, int]:
        """None where it is not compiled; it is then called as it is."""
        if last is None:
            return None, 0
        norm, head = last
        try:
            described = DecoderHead(*_norm_of(norm, self._dtype), _product_of((head,), self._dtype))
        except UnfitLayersError:
            return None, 0
        assert isinstance(head, JoinableLinear), "it has a product"
        return described, head.out_features

    def _described(self, layer: Any) -> DecoderLayer:
        attention, mlp = layer.self_attn, layer.mlp
        norms = (layer.input_layernorm, layer.post_attention_layernorm)
        norms += tuple(getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        weights, epsilons = zip(*(_norm_of(one, self._dtype) for one in norms), strict=True)
        products = (
            _product_of((attention.q_proj, attention.k_proj, attention.v_proj), self._dtype),
            _product_of((attention.o_proj,), self._dtype),
            _product_of((mlp.gate_proj, mlp.up_proj), self._dtype),
            _product_of((mlp.down_proj,), self._dtype),
        )
        return DecoderLayer(*weights, *epsilons, *products, None, None, attention.window or 0, attention.scaling)


class UnfitLayersError(Exception):
    """Layers have a part that no compiled kernel computes; it says which."""


def compiled_decoder(
    layers: Sequence[nn.Module],
    kernels: CompiledKernels,
    dtype: torch.dtype,
    last: tuple[nn.Module, nn.Module] | None = None,
) -> CompiledDecoder | str:
    """The layers in one call, or why they cannot be; see CompiledDecoder."""
    try:
        return CompiledDecoder(layers, kernels, dtype, last)
    except UnfitLayersError as error:
        return str(error)


def _shape_of(layer: nn.Module) -> _Shape:
    if not isinstance(layer, FusedDecoderLayer):
        raise UnfitLayersError(f"{type(layer).__name__} is not of llama's shape")
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    head_dim = attention.head_dim
    num_heads, num_kv_heads = (one.out_features // head_dim for one in (attention.q_proj, attention.k_proj))
    return _Shape(mlp.gate_proj.in_features, mlp.gate_proj.out_features, num_heads, num_kv_heads, head_dim)


def _norm_of(norm: nn.Module | None, dtype: torch.dtype) -> tuple[int | None, float]:
    """Where its weight is, and its epsilon; None where there is no norm."""
    if norm is None:
        return None, 0.0
    if not isinstance(norm, CompiledRMSNorm) or norm.weight.dtype != dtype or _is_hooked(norm):
        raise UnfitLayersError(f"{type(norm).__name__} is not compiled")
    return norm.weight.data_ptr(), norm.variance_epsilon


def _product_of(linears: Sequence[nn.Module], dtype: torch.dtype) -> DecoderProduct:
    """That of layers that read one tensor, one below the other."""
    joins = [one.join for one in linears if isinstance(one, JoinableLinear) and not _is_hooked(one)]
    if len(joins) != len(linears):  # as those of tensor ranks
        raise UnfitLayersError(f"{type(linears[0]).__name__} is not a product alone")
    join = joins[0]
    if any(one is not join for one in joins) or len(join.sizes) != len(linears):
        raise UnfitLayersError("what reads one tensor is not one product")
    product = join.product
    if isinstance(product, CompiledInt8Product):
        return DecoderProduct(ctypes.addressof(product.layer_with(join.bias)), 1)
    if isinstance(product, CompiledProduct) and product.is_even(dtype):
        return DecoderProduct(ctypes.addressof(product.layer_with(join.bias)), 0)
    raise UnfitLayersError(f"{type(product).__name__} is not compiled")


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
