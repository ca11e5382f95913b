"""Decoding by kernels of our own, which read the paged cache in place. Imported where triton is installed."""

from typing import Any

import torch
from torch import Tensor

from serve_app.engine.attention.backend import DecodeRows
from serve_app.engine.attention.triton_kernels import decode_parts, join_parts

_MIN_PART = 256  # keys of one program
_MAX_PARTS = 32  # of a sequence of max_model_len
_TILE = 64  # of them, at a time
_MAX_ROW_BYTES = 512  # of a key, or a value, in tiles of that size: more would not fit every GPU's shared memory
_MIN_GROUP_WIDTH = 16  # rows that a product of tensor cores has at least


class TritonBackend:
    """DecodeBackend of two launches a layer, for any block size, window, softcap, sinks, and widths of heads."""

    is_graph_safe = True
    is_compiled = False

    def __init__(self, block_size: int, max_model_len: int) -> None:
        self._block_size = block_size
        self._part = max(_MIN_PART, _next_power_of_two(-(-max_model_len // _MAX_PARTS)))

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
        num_rows, num_heads, head_dim = query.shape
        num_kv_heads, value_dim = values.shape[1:]
        num_parts = -(-decoded.max_length // self._part)
        query = query if query.stride(2) == 1 else query.contiguous()
        float32: dict[str, Any] = {"dtype": torch.float32, "device": query.device}
        sums = torch.empty(num_rows, num_heads, num_parts, value_dim, **float32)
        peaks, weights = torch.empty(2, num_rows, num_heads, num_parts, **float32)
        output = query.new_empty(num_rows, num_heads, value_dim)
        group = num_heads // num_kv_heads
        widest = max(_next_power_of_two(head_dim), _next_power_of_two(value_dim))
        decode_parts[(num_rows, num_kv_heads, num_parts)](
            query,
            keys,
            values,
            decoded.tables,
            decoded.lengths,
            sums,
            peaks,
            weights,
            scaling,
            softcap or 0.0,
            query.stride(0),
            query.stride(1),
            decoded.tables.stride(0),
            num_parts,
            NUM_KV_HEADS=num_kv_heads,
            GROUP=group,
            HEAD_DIM=head_dim,
            VALUE_DIM=value_dim,
            BLOCK_SIZE=self._block_size,
            PART=self._part,
            TILE=_TILE if widest * keys.element_size() <= _MAX_ROW_BYTES else _TILE // 2,
            WINDOW=window or 0,
            HAS_SOFTCAP=softcap is not None,
            GROUP_WIDTH=max(_MIN_GROUP_WIDTH, _next_power_of_two(group)),
            HEAD_WIDTH=max(_MIN_GROUP_WIDTH, _next_power_of_two(head_dim)),
            VALUE_WIDTH=max(_MIN_GROUP_WIDTH, _next_power_of_two(value_dim)),
        )
        join_parts[(num_rows, num_heads)](
            sums,
            peaks,
            weights,
            query if sinks is None else sinks,
            decoded.lengths,
            output,
            num_parts,
            NUM_HEADS=num_heads,
            VALUE_DIM=value_dim,
            PART=self._part,
            WINDOW=window or 0,
            HAS_SINKS=sinks is not None,
            VALUE_WIDTH=_next_power_of_two(value_dim),
        )
        return output


def _next_power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
