"""Products of quantized weights on CUDA, in as few launches as torch's operators allow.

Decoding waits for launches as much as for weights. A row is rounded in five: its largest magnitude and a bound of it,
the quotient, the nearest integer, the cast. Scales, bias and the cast of the answer are two more. Layers that read one
tensor are one product. All operators but tinygemm's exist on CPU too, where they are tested.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from serve_app.models.packed_linear import JoinableLinear, share_product
from serve_app.models.quantized_kernels import INT4_INNER_TILES
from serve_app.models.quantized_weight import QuantizedWeight
from serve_app.models.torch_dtypes import FLOAT8

logger = logging.getLogger(__name__)

_MIN_INT_MM_ROWS = 17  # that cuBLASLt takes
_MAX_INT8 = 127.0
_MAX_FLOAT8 = torch.finfo(FLOAT8).max
_SMALLEST = torch.finfo(torch.float32).tiny  # a row's largest magnitude is taken to be at least that
_MAX_TILE_ROWS = 64  # tinygemm reads all weights anew for every 16
_HALF_BYTE = 15


class CudaProduct(ABC):
    """A Product of a matrix with at least one row, which can be joined with others of its kind."""

    bias_dtype = torch.float32

    def __init__(self, num_outputs: int) -> None:
        self.num_outputs = num_outputs

    def multiply(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """See Product."""
        shape = (*inputs.shape[:-1], self.num_outputs)
        if inputs.numel() == 0:  # a head in a step that draws nothing: kernels cannot be launched for no rows
            return inputs.new_zeros(shape)
        return self.multiply_rows(inputs.reshape(-1, inputs.shape[-1]).contiguous(), bias).view(shape)

    @abstractmethod
    def multiply_rows(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """rows [M, K] contiguous, bias [N] float32 -> [M, N] of the rows' dtype."""

    @abstractmethod
    def joined(self, others: Sequence[Self]) -> Self | None:
        """One product of this weight and others, one below the other; None: they have not one form."""


class Int8RowProduct(CudaProduct):
    """Int8 weights and rows, a scale for each output and each row: cuBLASLt through `_int_mm`."""

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        """values [N, K] int8, scales [N, 1] float32."""
        super().__init__(len(values))
        self._values = values
        self._scales = scales
        self._columns = values.t()  # [K, N]
        self._factors = scales.view(1, -1) / _MAX_INT8  # [1, N]
        self._zero = torch.zeros((), device=values.device)

    def multiply_rows(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """Exact in the integers."""
        maxima = row_maxima(rows)
        num_rows = max(len(rows), _MIN_INT_MM_ROWS)  # what lies in the rows below is not looked at
        scaled = rows.new_empty((num_rows, rows.shape[1]), dtype=torch.float32)
        torch.addcdiv(self._zero, rows, maxima, value=_MAX_INT8, out=scaled.narrow(0, 0, len(rows)))
        whole = scaled.round_().to(torch.int8)
        products = torch._int_mm(whole, self._columns).narrow(0, 0, len(rows))
        return _scaled(torch.mul(products, self._factors), maxima, bias, rows.dtype)

    def joined(self, others: Sequence[Self]) -> Self:
        """See CudaProduct."""
        all_of_them = [self, *others]
        values = torch.cat([one._values for one in all_of_them])
        return type(self)(values, torch.cat([one._scales for one in all_of_them]))


class Int8CastProduct(CudaProduct):
    """Int8 weights, a scale for each output, cast to bfloat16 in each call: exact, in 5 bytes of traffic a weight."""

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        """values [N, K] int8, scales [N, 1] float32."""
        super().__init__(len(values))
        self._values = values
        self._scales = scales

    def multiply_rows(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """In bfloat16: sums of weights that are not scaled would overflow in float16."""
        sums = linear(rows.to(torch.bfloat16), self._values.to(torch.bfloat16))
        return _scaled(sums, self._scales.view(1, -1), bias, rows.dtype)

    def joined(self, others: Sequence[Self]) -> Self:
        """See CudaProduct."""
        all_of_them = [self, *others]
        values = torch.cat([one._values for one in all_of_them])
        return type(self)(values, torch.cat([one._scales for one in all_of_them]))


class Float8RowProduct(CudaProduct):
    """Float8 weights and rows, a scale for each output, and each row or all: `_scaled_mm`."""

    def __init__(self, values: Tensor, scales: Tensor, input_scale: Tensor | None) -> None:
        """values [N, K] float8, scales [N, 1] float32, input_scale [] float32: of all rows; None: each has its own."""
        super().__init__(len(values))
        self._values = values
        self._scales = scales
        self._input_scale = input_scale
        self._columns = values.t()  # [K, N], column-major as the kernel wants
        self._zero = torch.zeros((), device=values.device)
        self._factors = scales.view(1, -1) / (_MAX_FLOAT8 if input_scale is None else 1.0)  # [1, N]

    def multiply_rows(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """In float8, sums in float32, answers in bfloat16: the kernel for rows of scales gives no other."""
        if self._input_scale is None:
            scales = row_maxima(rows)
            rounded = torch.addcdiv(self._zero, rows, scales, value=_MAX_FLOAT8).to(FLOAT8)
        else:
            scales = self._input_scale.expand(len(rows), 1).contiguous()
            rounded = torch.addcdiv(self._zero, rows, scales).clamp_(-_MAX_FLOAT8, _MAX_FLOAT8).to(FLOAT8)
        products = torch._scaled_mm(
            rounded, self._columns, scale_a=scales, scale_b=self._factors, out_dtype=torch.bfloat16
        )
        return _with_bias(products, bias, rows.dtype)

    def joined(self, others: Sequence[Self]) -> Self | None:
        """See CudaProduct. Layers whose inputs are rounded by scales of their own stay alone."""
        all_of_them = [self, *others]
        scales = [one._input_scale for one in all_of_them if one._input_scale is not None]
        if scales and (len(scales) < len(all_of_them) or any(not torch.equal(scales[0], one) for one in scales)):
            return None
        values = torch.cat([one._values.view(torch.uint8) for one in all_of_them]).view(FLOAT8)
        return type(self)(values, torch.cat([one._scales for one in all_of_them]), self._input_scale)


class Int4TileProduct(CudaProduct):
    """Weights of at most 4 bits in groups, inputs in bfloat16: tinygemm; above some rows dequantized once for all."""

    def __init__(self, tiles: Tensor, factors: Tensor, group_size: int, input_order: Tensor | None) -> None:
        """tiles [N / 8, K / 128, 32, 4] int32, factors [G, N, 2] bfloat16: (q - 8) * factor 0 + factor 1."""
        super().__init__(factors.shape[1])
        self._tiles = tiles
        self._factors = factors
        self._group_size = group_size
        self._order = input_order

    @classmethod
    def of(cls, weight: QuantizedWeight) -> Self:
        """Of a weight on a GPU."""
        can_unpack_tiles(weight.values.device)  # asked here: steps that are captured may not wait for an answer
        shifted = (weight.values + 8).to(torch.uint8)  # [N, K] in 0 to 15
        return cls(pack_tiles(shifted), int4_factors(weight), weight.group_size, weight.input_order)

    @property
    def num_bytes(self) -> int:
        """Of the packed weight."""
        return self._tiles.nbytes + self._factors.nbytes

    def multiply_rows(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """In bfloat16."""
        inputs = rows.to(torch.bfloat16)
        if self._order is not None:
            inputs = inputs.index_select(1, self._order)
        if len(inputs) > _MAX_TILE_ROWS and can_unpack_tiles(inputs.device):
            products = linear(inputs, dequantized_tiles(self._tiles, self._factors))
        else:
            products = torch.ops.aten._weight_int4pack_mm(
                inputs.contiguous(), self._tiles, self._group_size, self._factors
            )
        return _with_bias(products, bias, rows.dtype)

    def joined(self, others: Sequence[Self]) -> Self | None:
        """See CudaProduct. Layers that read inputs in orders of their own stay alone."""
        all_of_them = [self, *others]
        if any(one._order is not None or one._group_size != self._group_size for one in all_of_them):
            return None
        tiles = torch.cat([one._tiles for one in all_of_them])
        factors = torch.cat([one._factors for one in all_of_them], dim=1)
        return type(self)(tiles, factors, self._group_size, None)


class CudaLinear(JoinableLinear):
    """One layer, alone or joined with others."""

    def __init__(self, product: CudaProduct, num_inputs: int, num_bytes: int, bias: Tensor | None) -> None:
        """num_bytes: of the weight in the product's form."""
        super().__init__(product, num_inputs, product.num_outputs, bias)
        self.num_bytes += num_bytes

    @property
    def product(self) -> CudaProduct:
        """Of this layer, and those joined with it."""
        product = self.join.product
        assert isinstance(product, CudaProduct)
        return product


def join_cuda(linears: Sequence[CudaLinear]) -> None:
    """Have layers that read one tensor share one product, where theirs are of one form."""
    first, *others = (one.product for one in linears)
    product = first.joined(others) if all(type(one) is type(first) for one in others) else None
    if product is not None:
        share_product(product, linears)


def row_maxima(rows: Tensor) -> Tensor:
    """rows [M, K] of any float dtype -> the largest magnitude of each [M, 1] float32; not finite where one is not."""
    maxima: Tensor = torch.linalg.vector_norm(rows, math.inf, dim=-1, keepdim=True, dtype=torch.float32)
    return maxima.clamp_(min=_SMALLEST)


def int4_factors(weight: QuantizedWeight) -> Tensor:
    """What torch's kernels multiply by and add [G, N, 2] bfloat16: they give (q - 8) * scale + offset."""
    zeros = torch.zeros_like(weight.scales) if weight.zero_points is None else weight.zero_points
    offsets = -zeros.to(torch.float32) * weight.scales
    return torch.stack([weight.scales.t(), offsets.t()], dim=2).to(torch.bfloat16).contiguous()


def pack_tiles(numbers: Tensor) -> Tensor:
    """numbers [N, K] uint8 in 0 to 15, on a GPU -> tinygemm's layout [N / 8, K / 128, 32, 4] int32."""
    even, odd = numbers.view(len(numbers), -1, 2).unbind(2)
    pairs = even << 4 | odd
    tiles: Tensor = torch.ops.aten._convert_weight_to_int4pack(pairs, INT4_INNER_TILES)
    return tiles


def unpack_tiles(tiles: Tensor) -> Tensor:
    """tinygemm's layout [N / 8, K / 128, 32, 4] int32 -> numbers [N, K] bfloat16 in 0 to 15.

    As torch's int4mm.cu packs them: lane 4n + q of a tile of 8 outputs and 128 inputs has output n, and in word i of
    four, of each two tiles of 16 inputs, inputs 2q and 2q + 1 of both halves: a byte has the two halves' numbers.
    """
    num_rows, num_columns = tiles.shape[:2]
    packed = tiles.view(torch.uint8).view(num_rows, num_columns, 8, 4, 4, 2, 2)  # [.., .., n, q, i, odd, tile]
    halves = torch.stack((packed & _HALF_BYTE, packed >> 4), dim=-1)
    places = halves.permute(0, 2, 1, 4, 6, 7, 3, 5)  # [.., n, .., i, tile, half, q, odd]
    numbers = places.to(torch.bfloat16, memory_format=torch.contiguous_format)
    return numbers.view(8 * num_rows, 128 * num_columns)


def dequantized_tiles(tiles: Tensor, factors: Tensor) -> Tensor:
    """tiles as in unpack_tiles, factors [G, N, 2] bfloat16 -> the weight [N, K] bfloat16, as tinygemm rounds it."""
    numbers = unpack_tiles(tiles).sub_(8)
    scales, offsets = factors.permute(2, 1, 0).unsqueeze(3).unbind(0)  # [N, G, 1] each
    grouped = numbers.view(len(numbers), factors.shape[0], -1)  # [N, G, K / G]
    torch.addcmul(offsets, grouped, scales, out=grouped)
    return numbers


@cache
def can_unpack_tiles(device: torch.device) -> bool:
    """Whether this torch packs as `unpack_tiles` expects: asked of a few numbers, once."""
    if device.type != "cuda":
        return True
    numbers = torch.randint(0, 16, (16, 256), generator=torch.Generator().manual_seed(0)).to(device, torch.uint8)
    is_known = bool(torch.equal(unpack_tiles(pack_tiles(numbers)).to(torch.uint8), numbers))
    if not is_known:
        logger.warning("int4 weights are read anew for each 16 rows: torch packs them in another layout than is known")
    return is_known


def _scaled(sums: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """sums [M, N] times scales [M, 1] or [1, N] float32, and the bias [N] float32: in float32, in one launch."""
    outputs = sums.new_empty(sums.shape, dtype=dtype)
    if bias is None:
        return torch.mul(sums, scales, out=outputs)
    return torch.addcmul(bias, sums, scales, out=outputs)


def _with_bias(products: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """products [M, N] and the bias [N] float32."""
    if bias is None:
        return products.to(dtype)
    return torch.add(products, bias, out=products.new_empty(products.shape, dtype=dtype))
