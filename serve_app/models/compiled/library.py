"""The compiled kernels as functions on tensors. What each computes is said in kernels.cpp."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_Function = Callable[..., None]

_ADDRESS, _COUNT, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_ARGUMENTS = {
    "norm": (_ADDRESS, _COUNT, _COUNT, _ADDRESS, ctypes.c_double, _ADDRESS, _THREADS),
    "silu_product": (_ADDRESS, _COUNT, _COUNT, _ADDRESS, _THREADS),
    "rotate": (_ADDRESS, _COUNT, _COUNT, _COUNT, _COUNT, _ADDRESS, _ADDRESS, _THREADS),
    "attend": (*[_ADDRESS] * 8, _THREADS),
    "place_largest": (_ADDRESS, _COUNT, _COUNT, _COUNT, _ADDRESS, _THREADS),
}
_DECODE_ARGUMENTS = (_ADDRESS, _ADDRESS, _COUNT, _ADDRESS, _THREADS)
_PRODUCT_ARGUMENTS = (_ADDRESS, _ADDRESS, _COUNT, _COUNT, _ADDRESS, _THREADS)


class Int8Layer(ctypes.Structure):
    """Addresses and sizes of a packed weight."""

    _fields_ = (
        *((name, _ADDRESS) for name in ("weights", "offsets", "scales", "bias")),
        *((name, _COUNT) for name in ("num_outputs", "num_quads")),
    )


class FloatLayer(ctypes.Structure):
    """Addresses and sizes of a packed weight in float32 or bfloat16."""

    _fields_ = (
        *((name, _ADDRESS) for name in ("weights", "bias")),
        *((name, _COUNT) for name in ("num_outputs", "num_units")),
    )


class AttentionSizes(ctypes.Structure):
    """One layer, and the sequences that decode; window and softcap are 0 where there is none."""

    _fields_ = (
        *((name, _COUNT) for name in ("num_sequences", "num_heads", "num_kv_heads", "head_dim", "value_dim")),
        *((name, _COUNT) for name in ("query_size", "block_size", "table_size", "window")),
        *((name, ctypes.c_float) for name in ("scaling", "softcap")),
    )


class DecoderProduct(ctypes.Structure):
    """A FloatLayer or an Int8Layer."""

    _fields_ = (("layer", _ADDRESS), ("is_int8", _COUNT))


class DecoderLayer(ctypes.Structure):
    """Where a layer's weights and its part of the KV cache are; window is 0 where there is none. See decoder.h."""

    _fields_ = (
        *((f"{name}_norm", _ADDRESS) for name in ("attention", "mlp", "query", "key")),
        *((f"{name}_epsilon", ctypes.c_double) for name in ("attention", "mlp", "query", "key")),
        *((name, DecoderProduct) for name in ("queries_keys_values", "attended", "gates_and_ups", "activated")),
        *(("keys", _ADDRESS), ("values", _ADDRESS), ("window", _COUNT), ("scaling", ctypes.c_double)),
    )


class DecoderStep(ctypes.Structure):
    """Sizes of a step, and where its rows are."""

    _fields_ = (
        *((name, _COUNT) for name in ("num_sequences", "width", "mlp_width", "num_heads", "num_kv_heads")),
        *((name, _COUNT) for name in ("head_dim", "block_size", "table_size")),
        *((name, _ADDRESS) for name in ("slots", "lengths", "tables", "positions", "cos", "sin", "hidden")),
        *(("num_logits", _COUNT), ("logit_rows", _ADDRESS), ("outputs", _ADDRESS)),
    )


class DecoderHead(ctypes.Structure):
    """The last norm and the product that gives logits."""

    _fields_ = (("norm", _ADDRESS), ("epsilon", ctypes.c_double), ("product", DecoderProduct))


class CompiledKernels:
    """Functions of a library. All tensors are on CPU; those that are read may lie apart, and are made contiguous."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where it cannot be loaded."""
        library = ctypes.CDLL(str(path))
        self.digest = path.stem
        self._norm, self._silu_product, self._rotate, self._attend, self._place_largest = (
            {dtype: _function(library, f"{name}_{suffix}", arguments) for dtype, suffix in _NAMES.items()}
            for name, arguments in _ARGUMENTS.items()
        )
        self._multiply = {
            dtype: _function(library, f"multiply_{suffix}", _PRODUCT_ARGUMENTS) for dtype, suffix in _NAMES.items()
        }
        self._decode = {
            dtype: _function(library, f"decode_{suffix}", _DECODE_ARGUMENTS) for dtype, suffix in _NAMES.items()
        }
        self.has_int8 = hasattr(library, "multiply_int8")  # the CPU has AVX-512 VNNI
        self._multiply_int8 = _function(library, "multiply_int8", _PRODUCT_ARGUMENTS) if self.has_int8 else None

    @staticmethod
    def serve(dtype: torch.dtype) -> bool:
        """Whether there are kernels for tensors of a dtype."""
        return dtype in _NAMES

    def norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Root mean square norm: rows [..., D], weight [D] -> [..., D]."""
        rows, width = rows.contiguous(), weight.shape[0]
        outputs = torch.empty_like(rows)
        self._norm[rows.dtype](
            *(rows.data_ptr(), rows.numel() // width, width, weight.data_ptr(), epsilon, outputs.data_ptr()),
            torch.get_num_threads(),
        )
        return outputs

    def silu_product(self, gates_and_ups: Tensor) -> Tensor:
        """SiLU of the first half times the second: [..., 2 * I] -> [..., I]."""
        rows, width = gates_and_ups.contiguous(), gates_and_ups.shape[-1] // 2
        outputs = rows.new_empty((*rows.shape[:-1], width))
        self._silu_product[rows.dtype](
            *(rows.data_ptr(), rows.numel() // (2 * width), width, outputs.data_ptr()), torch.get_num_threads()
        )
        return outputs

    def rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Rotary positions in halves, in place: heads [T, H, Dh], those of a token contiguous; cos, sin [T, Dh]."""
        num_tokens, num_heads, head_dim = heads.shape
        self._rotate[heads.dtype](
            *(heads.data_ptr(), num_tokens, heads.stride(0), num_heads, head_dim, cos.data_ptr(), sin.data_ptr()),
            torch.get_num_threads(),
        )

    def attend(
        self,
        sizes: AttentionSizes,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        tables: Tensor,
        lengths: Tensor,
        sinks: Tensor | None,
    ) -> Tensor:
        """Sequences of one query each: query [B, H, Dh], those of a sequence contiguous -> [B, H, Dv].

        One layer's keys [num_slots, K, Dh] and values [num_slots, K, Dv], contiguous; tables [B, N] and lengths [B]
        int64, contiguous; sinks [H].
        """
        outputs = query.new_empty(query.shape[0], query.shape[1], values.shape[-1])
        self._attend[query.dtype](
            *(ctypes.addressof(sizes), query.data_ptr(), keys.data_ptr(), values.data_ptr()),
            *(tables.data_ptr(), lengths.data_ptr(), None if sinks is None else sinks.data_ptr(), outputs.data_ptr()),
            torch.get_num_threads(),
        )
        return outputs

    def decode(
        self,
        dtype: torch.dtype,
        step: DecoderStep,
        layers: "ctypes.Array[DecoderLayer]",
        head: DecoderHead | None = None,
    ) -> None:
        """Layers one after the other, then the head where the step wants logits."""
        self._decode[dtype](
            *(ctypes.addressof(step), ctypes.addressof(layers), len(layers)),
            *(None if head is None else ctypes.addressof(head), torch.get_num_threads()),
        )

    def finite_largest(self, rows: Tensor, otherwise: int) -> Tensor:
        """rows [M, N] -> [M] int64: the first place of each row's largest number.

        It is `otherwise` where a number is NaN or the largest is not finite.
        """
        rows, places = rows.contiguous(), torch.empty(len(rows), dtype=torch.int64)
        self._place_largest[rows.dtype](
            *(rows.data_ptr(), *rows.shape, otherwise, places.data_ptr()), torch.get_num_threads()
        )
        return places

    def multiply(self, layer: FloatLayer, rows: Tensor) -> Tensor:
        """rows [..., K] of the layer's dtype -> [..., N]."""
        return _multiplied(self._multiply[rows.dtype], layer, rows)

    def multiply_int8(self, layer: Int8Layer, rows: Tensor) -> Tensor:
        """rows [..., K] float32 -> [..., N], each row rounded to int8 by its largest number."""
        assert self._multiply_int8 is not None, "the CPU has the instructions"
        return _multiplied(self._multiply_int8, layer, rows)


def _multiplied(function: _Function, layer: FloatLayer | Int8Layer, rows: Tensor) -> Tensor:
    rows, num_inputs = rows.contiguous(), rows.shape[-1]
    outputs = rows.new_empty((*rows.shape[:-1], layer.num_outputs))
    function(
        *(ctypes.addressof(layer), rows.data_ptr(), rows.numel() // num_inputs, num_inputs, outputs.data_ptr()),
        torch.get_num_threads(),
    )
    return outputs


def _function(library: ctypes.CDLL, name: str, arguments: tuple[type, ...]) -> _Function:
    function = library[name]
    function.argtypes, function.restype = arguments, None
    return function
