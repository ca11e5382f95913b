"""Reading quantized weights from checkpoints: a rank's part of one, whatever the format packs it in.

compressed-tensors: https://github.com/vllm-project/compressed-tensors (compressors/quantized_compressors)
GPTQ: arXiv:2210.17323, AWQ: arXiv:2306.00978, in the layouts that transformers reads
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from serve_app.checkpoints.quantized_modules import WordLayout
from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.checkpoints.stored_weights import (
    WORD_BITS,
    StoredWeight,
    gemv_words,
    is_one_number,
    num_groups_of,
    num_words,
)
from serve_app.engine.tensor_file import TensorReader
from serve_app.errors import ConfigError
from serve_app.models.quantized_weight import QuantizedWeight
from serve_app.models.torch_dtypes import FLOAT8
from serve_app.parallel.tensor_parallel import Part
from serve_app.types.shards import WeightScheme

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def read_quantized(
    name: str,
    stored: StoredWeight,
    scheme: WeightScheme,
    layout: WordLayout | None,
    shape: torch.Size,
    part: Part,
    reader: TensorReader,
) -> QuantizedWeight:
    """A rank's part of a weight of this whole shape [N, K]. Raises ConfigError when its tensors do not fit.

    layout: of the words where `qweight` holds them.
    """
    source = _Source(name, stored.tensors, reader)
    if layout in ("gptq", "gptq_v2"):
        weight = _read_gptq(source, scheme, shape, zero_offset=1 if layout == "gptq" else 0)
    elif layout == "awq_gemm":
        weight = _read_awq_gemm(source, scheme, shape)
    elif layout == "awq_gemv":
        weight = _read_awq_gemv(source, scheme, shape)
    elif "weight_packed" in stored.tensors:
        weight = _read_packed(source, scheme, shape)
    else:
        weight = _read_plain(source, scheme, shape)
    _check_scales(name, weight)
    return _cut(name, weight, part)


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    tensors: Mapping[str, TensorHeader]
    reader: TensorReader

    def read(self, leaf: str, dtype: torch.dtype, *shape: int | None) -> Tensor:
        """A whole tensor of this shape; None: any size."""
        header = self.tensors.get(leaf)
        if header is None:
            raise ConfigError(f"{self.name}: {leaf} is missing beside it; compress the model again", field="source")
        expected = [size if wanted is None else wanted for size, wanted in zip(header.shape, shape, strict=False)]
        if len(header.shape) != len(shape) or list(header.shape) != expected:
            raise ConfigError(
                f"{self.name}: {leaf} has shape {list(header.shape)} in {header.file}, its weight needs "
                f"{['any' if size is None else size for size in shape]}",
                field="source",
            )
        tensor = torch.empty(header.shape, dtype=dtype)
        self.reader.read(header, tensor, None, ())
        return tensor


def _read_plain(source: _Source, scheme: WeightScheme, shape: torch.Size) -> QuantizedWeight:
    """int-quantized, naive-quantized, float-quantized and fp8: one number an element."""
    values = source.read("weight", FLOAT8 if scheme.is_float else torch.int8, *shape)
    if is_one_number(source.tensors["weight_scale"]):
        header = source.tensors["weight_scale"]
        scales = source.read("weight_scale", torch.float32, *header.shape).view(1, 1).expand(len(values), 1)
    elif scheme.block_rows is not None:
        blocks = source.read("weight_scale", torch.float32, -(-shape[0] // scheme.block_rows), None)
        scales = blocks.repeat_interleave(scheme.block_rows, dim=0)[: shape[0]]
    else:
        scales = source.read("weight_scale", torch.float32, shape[0], num_groups_of(shape[1], scheme))
    zeros = None
    if "weight_zero_point" in source.tensors:
        zeros = source.read("weight_zero_point", torch.int8, *source.tensors["weight_zero_point"].shape)
        zeros = zeros.view(1, 1).expand(len(values), 1) if zeros.numel() == 1 else zeros
    input_scale = None
    if scheme.has_static_inputs:
        input_scale = source.read("input_scale", torch.float32, *source.tensors["input_scale"].shape).view(())
    return _grouped(values, scales.contiguous(), zeros, scheme, input_scale)


def _read_packed(source: _Source, scheme: WeightScheme, shape: torch.Size) -> QuantizedWeight:
    """pack-quantized: the numbers of a row as one stream of bits in int32, shifted to begin at zero."""
    num_rows, num_columns = shape
    widths = {is_dense: num_words(num_columns, scheme.bits, is_dense=is_dense) for is_dense in (True, False)}
    header = source.tensors["weight_packed"]
    is_dense = len(header.shape) != 2 or header.shape[1] != widths[False]  # older writers let no number cross a word
    packed = source.read("weight_packed", torch.int32, num_rows, widths[is_dense])
    if "weight_shape" in source.tensors:
        stored_shape = source.read("weight_shape", torch.int64, 2).tolist()
        if stored_shape != list(shape):
            raise ConfigError(
                f"{source.name}: weight_shape says {stored_shape}, config.json {list(shape)}", field="source"
            )
    shift = 2 ** (scheme.bits - 1)
    values = (unpack_words(packed, scheme.bits, num_columns, is_dense=is_dense) - shift).to(torch.int8)
    scales = source.read("weight_scale", torch.float32, num_rows, num_groups_of(num_columns, scheme))
    zeros = None
    if "weight_zero_point" in source.tensors:
        width = num_words(num_rows, scheme.bits, is_dense=is_dense)
        words = source.read("weight_zero_point", torch.int32, width, scales.shape[1]).t().contiguous()
        zeros = (unpack_words(words, scheme.bits, num_rows, is_dense=is_dense).t() - shift).to(torch.int8)
    return _in_groups(source, "weight_g_idx", values, scales, zeros, scheme)


def _read_gptq(source: _Source, scheme: WeightScheme, shape: torch.Size, *, zero_offset: int) -> QuantizedWeight:
    """Inputs of an output in words of int32, one stream of bits; zero points are stored less `zero_offset`."""
    bits, (num_rows, num_columns) = scheme.bits, shape
    packed = source.read("qweight", torch.int32, num_words(num_columns, bits), num_rows)
    scales = source.read("scales", torch.float32, num_groups_of(num_columns, scheme), num_rows)
    zeros = source.read("qzeros", torch.int32, len(scales), num_words(num_rows, bits))
    shift = 2 ** (bits - 1)
    values = (unpack_words(packed.t().contiguous(), bits, num_columns) - shift).to(torch.int8)
    zero_points = (unpack_words(zeros, bits, num_rows).t() + zero_offset) & (2**bits - 1)
    return _in_groups(source, "g_idx", values, scales.t().contiguous(), (zero_points - shift).to(torch.int8), scheme)


def _read_awq_gemm(source: _Source, scheme: WeightScheme, shape: torch.Size) -> QuantizedWeight:
    """Eight outputs of an input to an int32, even ones first."""
    num_rows, num_columns = shape
    packed = source.read("qweight", torch.int32, num_columns, -(-num_rows // 8))
    scales = source.read("scales", torch.float32, num_groups_of(num_columns, scheme), num_rows)
    zeros = source.read("qzeros", torch.int32, len(scales), -(-num_rows // 8))
    places = torch.tensor([_AWQ_ORDER.index(place) for place in range(8)])

    def unpack(words: Tensor) -> Tensor:
        nibbles = unpack_words(words, 4, words.shape[1] * 8).view(len(words), -1, 8)
        return (nibbles[:, :, places].reshape(len(words), -1)[:, :num_rows].t().contiguous() - 8).to(torch.int8)

    return _grouped(unpack(packed), scales.t().contiguous(), unpack(zeros), scheme)


def _read_awq_gemv(source: _Source, scheme: WeightScheme, shape: torch.Size) -> QuantizedWeight:
    """Eight inputs of an output to an int32, in order; rows of scales and zero points end in padding."""
    num_rows, num_columns = shape
    num_groups = num_groups_of(num_columns, scheme)
    width = gemv_words(num_groups, scheme)
    packed = source.read("qweight", torch.int32, num_rows, num_words(num_columns, 4))
    scales = source.read("scales", torch.float32, num_rows, 8 * width)[:, :num_groups].contiguous()
    zeros = unpack_words(source.read("qzeros", torch.int32, num_rows, width), 4, num_groups) - 8
    values = (unpack_words(packed, 4, num_columns) - 8).to(torch.int8)
    return _grouped(values, scales, zeros.to(torch.int8), scheme)


def unpack_words(words: Tensor, bits: int, count: int, *, is_dense: bool = True) -> Tensor:
    """words [R, W] int32 -> [R, count] int32, the lowest bits first."""
    per_word = WORD_BITS // bits
    places = torch.arange(count)
    firsts = places * bits if is_dense else places // per_word * WORD_BITS + places % per_word * bits
    index, shift = firsts // WORD_BITS, firsts % WORD_BITS
    wide = words.to(torch.int64) & 0xFFFFFFFF
    nexts = torch.nn.functional.pad(wide, (0, 1))[:, index + 1]  # where a number crosses into it
    numbers: Tensor = ((wide[:, index] | nexts << WORD_BITS) >> shift) & (2**bits - 1)
    return numbers.to(torch.int32)


def _in_groups(
    source: _Source, leaf: str, values: Tensor, scales: Tensor, zeros: Tensor | None, scheme: WeightScheme
) -> QuantizedWeight:
    """Columns sorted by their group, as the tensor `leaf` [K] tells it; without one, groups follow each other."""
    num_columns, num_groups = values.shape[1], scales.shape[1]
    if leaf not in source.tensors:
        return _grouped(values, scales, zeros, scheme)
    groups = source.read(leaf, torch.int64, num_columns)
    in_order = torch.arange(num_columns) // (scheme.group_size or num_columns)
    if torch.equal(groups, in_order) or bool((groups < 0).all()):
        return _grouped(values, scales, zeros, scheme)
    if not torch.equal(groups.bincount(minlength=num_groups), in_order.bincount()) or num_columns % num_groups:
        raise ConfigError(f"{source.name}: {leaf} gives groups of different sizes, which is not served", field="source")
    order = groups.argsort(stable=True)
    return QuantizedWeight(values[:, order], scales, scheme.bits, _unless_zero(zeros), order)


def _grouped(
    values: Tensor, scales: Tensor, zeros: Tensor | None, scheme: WeightScheme, input_scale: Tensor | None = None
) -> QuantizedWeight:
    """A weight whose last group may be shorter than the others: then all are made as small as fits."""
    num_columns, size = values.shape[1], scheme.group_size
    if size is not None and size < num_columns and num_columns % size:
        index = torch.arange(0, num_columns, math.gcd(size, num_columns)) // size
        scales, zeros = scales[:, index], None if zeros is None else zeros[:, index]
    return QuantizedWeight(values, scales, scheme.bits, _unless_zero(zeros), input_scale=input_scale)


def _unless_zero(zeros: Tensor | None) -> Tensor | None:
    return None if zeros is None or not bool(zeros.any()) else zeros.contiguous()


def _check_scales(name: str, weight: QuantizedWeight) -> None:
    if not bool(torch.isfinite(weight.scales).all()) or bool((weight.scales < 0).any()):
        raise ConfigError(f"{name}: a scale is negative or not finite; compress the model again", field="source")


def _cut(name: str, weight: QuantizedWeight, part: Part) -> QuantizedWeight:
    """This rank's part of a weight."""
    if part.dim is None:
        return weight
    if part.dim == 0:
        rows = torch.cat([torch.arange(start, end) for start, end in part.ranges])
        zeros = None if weight.zero_points is None else weight.zero_points[rows]
        return replace(weight, values=weight.values[rows], scales=weight.scales[rows], zero_points=zeros)
    if weight.input_order is not None:
        raise ConfigError(f"{name} has its inputs in an order of its own (act-order), which tensor ranks cannot cut")
    columns = torch.cat([torch.arange(start, end) for start, end in part.ranges])
    size = weight.group_size
    groups = torch.zeros(1, dtype=torch.int64)
    if weight.scales.shape[1] > 1:  # a cut within a group makes all groups as small as fits
        step = math.gcd(size, *(edge for edges in part.ranges for edge in edges))
        groups = columns[::step] // size
    zeros = None if weight.zero_points is None else weight.zero_points[:, groups]
    return replace(weight, values=weight.values[:, columns], scales=weight.scales[:, groups], zero_points=zeros)
