"""Reading quantized weights from checkpoints: a rank's part of one, whatever the format packs it in.

A rank reads the words that hold its numbers, and the scales and zero points of those; it unpacks nothing else.
compressed-tensors: https://github.com/vllm-project/compressed-tensors (compressors/quantized_compressors)
GPTQ: arXiv:2210.17323, AWQ: arXiv:2306.00978, in the layouts that transformers reads
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from serve_app.checkpoints.quantized_modules import WordLayout
from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.checkpoints.stored_weights import WORD_BITS, StoredWeight, gemv_words, is_one_number, num_groups_of
from serve_app.engine.packed_words import AWQ_PACKING, stream_packing, unpack
from serve_app.engine.quantized_parts import (
    Entries,
    Layout,
    Ranges,
    Reading,
    WeightPart,
    length_of,
    reading_of,
    weight_part,
)
from serve_app.engine.tensor_file import TensorReader
from serve_app.errors import ConfigError
from serve_app.models.quantized_weight import QuantizedWeight
from serve_app.models.torch_dtypes import FLOAT8
from serve_app.parallel.tensor_parallel import Part
from serve_app.types.shards import WeightScheme

_PLAIN, _TRANSPOSED = Layout(), Layout(is_transposed=True)


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

    layout: of the words where `qweight` holds them. Zero points that are all zero in the part are left out.
    """
    source = _Source(name, stored.tensors, reader, (shape[0], shape[1]), scheme, part)
    if layout in ("gptq", "gptq_v2"):
        weight = _read_gptq(source, zero_offset=1 if layout == "gptq" else 0)
    elif layout == "awq_gemm":
        weight = _read_awq_gemm(source)
    elif layout == "awq_gemv":
        weight = _read_awq_gemv(source)
    elif "weight_packed" in stored.tensors:
        weight = _read_packed(source)
    else:
        weight = _read_plain(source)
    if not bool(torch.isfinite(weight.scales).all()) or bool((weight.scales < 0).any()):
        raise ConfigError(f"{name}: a scale is negative or not finite; compress the model again", field="source")
    return weight


class _Source:
    """The tensors of one weight [N, K] with G groups of columns, and the part of it that a rank holds."""

    def __init__(
        self,
        name: str,
        tensors: Mapping[str, TensorHeader],
        reader: TensorReader,
        shape: tuple[int, int],
        scheme: WeightScheme,
        part: Part,
    ) -> None:
        self.name = name
        self.tensors = tensors
        self.scheme = scheme
        self.shape = shape
        self.num_groups = num_groups_of(shape[1], scheme)
        self.is_cut_along_inputs = part.dim == 1
        self.part: WeightPart = weight_part(scheme, shape, part)
        self._reader = reader

    def read(self, leaf: str, dtype: torch.dtype, reading: Reading) -> Tensor:
        """A part of a tensor. Raises ConfigError where it is missing or has another shape."""
        header = self.tensors.get(leaf)
        if header is None:
            raise ConfigError(f"{self.name}: {leaf} is missing beside it; compress the model again", field="source")
        if tuple(header.shape) != reading.shape:
            raise ConfigError(
                f"{self.name}: {leaf} has shape {list(header.shape)} in {header.file}, its weight needs "
                f"{list(reading.shape)}",
                field="source",
            )
        tensor = torch.empty(reading.part_shape, dtype=dtype)
        self._reader.read(header, tensor, reading.dim, reading.ranges)
        return tensor

    def number(self, leaf: str, dtype: torch.dtype) -> Tensor:
        """A tensor of one number, whatever its dimensions, as [1, 1]."""
        return self.read(leaf, dtype, Reading(tuple(self.tensors[leaf].shape))).view(1, 1)

    def values(self, leaf: str, layout: Layout) -> Tensor:
        """The part's numbers [n, k] uint8 as they are stored."""
        return self._unpacked(leaf, layout, self.shape, self.part.rows, self.part.columns)

    def scales(self, leaf: str, layout: Layout = _PLAIN, *, width: int | None = None) -> Tensor:
        """[n, g] float32. width: of a stored row that ends in padding."""
        num_rows, block_rows = self.shape[0], self.scheme.block_rows
        num_rows = num_rows if block_rows is None else -(-num_rows // block_rows)
        size, columns = self._groups_in(num_rows, width)
        stored = self.read(leaf, torch.float32, reading_of(layout, size, self.part.scale_rows, columns))
        scales = self._in_groups(stored.t() if layout.is_transposed else stored)
        if self.part.row_blocks is not None:
            scales = _pick(scales, self.part.row_blocks, dim=0)
        return scales.contiguous()

    def zero_points(self, leaf: str, layout: Layout, *, width: int | None = None) -> Tensor:
        """[n, g] uint8 as they are stored; of int8 where they are not packed. width: as in `scales`."""
        size, columns = self._groups_in(self.shape[0], width)
        if layout.packing is None:
            return self._in_groups(self.read(leaf, torch.int8, reading_of(layout, size, self.part.rows, columns)))
        return self._in_groups(self._unpacked(leaf, layout, size, self.part.rows, columns))

    def _groups_in(self, num_rows: int, width: int | None) -> tuple[tuple[int, int], Ranges]:
        """The size of a stored matrix with a column for each group, and which of its columns to read."""
        width = self.num_groups if width is None else width
        return (num_rows, width), self.part.groups.ranges if self.is_cut_along_inputs else ((0, width),)

    def _in_groups(self, read: Tensor) -> Tensor:
        """Without padding, and a column for each group of the part."""
        return _pick(read[:, : length_of(self.part.groups.ranges)], self.part.groups, dim=1)

    def _unpacked(self, leaf: str, layout: Layout, size: tuple[int, int], rows: Ranges, columns: Ranges) -> Tensor:
        packing = layout.packing
        assert packing is not None, "what is not packed is read as it is"
        words = self.read(leaf, torch.int32, reading_of(layout, size, rows, columns))
        numbers = torch.empty(length_of(rows), length_of(columns), dtype=torch.uint8)
        if layout.is_transposed != (layout.packed_dim == 0):  # words run down the stored tensor
            words = words.t()
        target, ranges = (numbers.t(), rows) if layout.packed_dim == 0 else (numbers, columns)
        word = position = 0
        for one in ranges:
            first, last = packing.words_of(one)
            end = position + one[1] - one[0]
            unpack(words[:, word : word + last - first], packing, one, target[:, position:end])
            word, position = word + last - first, end
        return numbers


def _read_plain(source: _Source) -> QuantizedWeight:
    """int-quantized, naive-quantized, float-quantized and fp8: one number an element."""
    scheme, part = source.scheme, source.part
    reading = reading_of(_PLAIN, source.shape, part.rows, part.columns)
    values = source.read("weight", FLOAT8 if scheme.is_float else torch.int8, reading)
    if is_one_number(source.tensors["weight_scale"]):
        scales = source.number("weight_scale", torch.float32).expand(len(values), 1).contiguous()
    else:
        scales = source.scales("weight_scale")
    zeros = None
    if "weight_zero_point" in source.tensors:
        if source.tensors["weight_zero_point"].num_elements == 1:
            zeros = source.number("weight_zero_point", torch.int8).expand(scales.shape)
        else:
            zeros = source.zero_points("weight_zero_point", _PLAIN)
    input_scale = None
    if scheme.has_static_inputs:
        input_scale = source.number("input_scale", torch.float32).view(())
    return QuantizedWeight(values, scales, scheme.bits, _unless_zero(zeros), input_scale=input_scale)


def _read_packed(source: _Source) -> QuantizedWeight:
    """pack-quantized: the numbers of a row as one stream of bits in int32, shifted to begin at zero."""
    bits, shape = source.scheme.bits, source.shape
    packings = {is_dense: stream_packing(bits, is_dense=is_dense) for is_dense in (True, False)}
    header = source.tensors["weight_packed"]
    # Older writers let no number cross a word.
    is_dense = len(header.shape) != 2 or header.shape[1] != packings[False].num_words(shape[1])
    numbers = source.values("weight_packed", Layout(packing=packings[is_dense]))
    if "weight_shape" in source.tensors:
        stored_shape = source.read("weight_shape", torch.int64, Reading((2,))).tolist()
        if stored_shape != list(shape):
            raise ConfigError(
                f"{source.name}: weight_shape says {stored_shape}, config.json {list(shape)}", field="source"
            )
    scales = source.scales("weight_scale")
    zeros = None
    if "weight_zero_point" in source.tensors:
        zeros = _signed(source.zero_points("weight_zero_point", Layout(packed_dim=0, packing=packings[is_dense])), bits)
    return _ordered(source, "weight_g_idx", QuantizedWeight(_signed(numbers, bits), scales, bits, _unless_zero(zeros)))


def _read_gptq(source: _Source, *, zero_offset: int) -> QuantizedWeight:
    """Inputs of an output in words of int32, one stream of bits; zero points are stored less `zero_offset`."""
    bits = source.scheme.bits
    packing = stream_packing(bits)
    numbers = source.values("qweight", Layout(is_transposed=True, packing=packing))
    scales = source.scales("scales", _TRANSPOSED)
    zeros = source.zero_points("qzeros", Layout(is_transposed=True, packed_dim=0, packing=packing))
    zeros.add_(zero_offset).bitwise_and_(2**bits - 1)
    weight = QuantizedWeight(_signed(numbers, bits), scales, bits, _unless_zero(_signed(zeros, bits)))
    return _ordered(source, "g_idx", weight)


def _read_awq_gemm(source: _Source) -> QuantizedWeight:
    """Eight outputs of an input to an int32, even ones first."""
    bits, layout = source.scheme.bits, Layout(is_transposed=True, packed_dim=0, packing=AWQ_PACKING)
    values = _signed(source.values("qweight", layout), bits)
    scales = source.scales("scales", _TRANSPOSED)
    return QuantizedWeight(values, scales, bits, _unless_zero(_signed(source.zero_points("qzeros", layout), bits)))


def _read_awq_gemv(source: _Source) -> QuantizedWeight:
    """Eight inputs of an output to an int32, in order; rows of scales and zero points end in padding."""
    bits, layout = source.scheme.bits, Layout(packing=stream_packing(source.scheme.bits))
    values = _signed(source.values("qweight", layout), bits)
    width = gemv_words(source.num_groups, source.scheme) * WORD_BITS // bits
    scales = source.scales("scales", width=width)
    zeros = _signed(source.zero_points("qzeros", layout, width=width), bits)
    return QuantizedWeight(values, scales, bits, _unless_zero(zeros))


def _ordered(source: _Source, leaf: str, weight: QuantizedWeight) -> QuantizedWeight:
    """With columns sorted by their group, as the tensor `leaf` [K] tells it; without one, groups follow each other.

    It is read whole: whether columns are in order is a property of all of them.
    """
    if leaf not in source.tensors:
        return weight
    num_columns, num_groups = source.shape[1], source.num_groups
    size = source.scheme.group_size or num_columns
    groups = source.read(leaf, torch.int64, Reading((num_columns,)))
    in_order = torch.arange(num_columns) // size
    if torch.equal(groups, in_order) or bool((groups < 0).all()):
        return weight
    is_known = bool(((groups >= 0) & (groups < num_groups)).all()) and num_columns % size == 0
    if not is_known or not torch.equal(groups.bincount(minlength=num_groups), in_order.bincount()):
        raise ConfigError(f"{source.name}: {leaf} gives groups of different sizes, which is not served", field="source")
    if source.is_cut_along_inputs:
        raise ConfigError(
            f"{source.name} has its inputs in an order of its own (act-order), which tensor ranks cannot cut"
        )
    order = groups.argsort(stable=True)
    return replace(weight, values=weight.values[:, order], input_order=order)


def _signed(numbers: Tensor, bits: int) -> Tensor:
    """Numbers uint8 that were shifted to begin at zero -> int8, in place."""
    return numbers.sub_(2 ** (bits - 1)).view(torch.int8)


def _pick(read: Tensor, entries: Entries, dim: int) -> Tensor:
    return read if entries.is_as_read else read.index_select(dim, torch.tensor(entries.index, dtype=torch.int64))


def _unless_zero(zeros: Tensor | None) -> Tensor | None:
    return None if zeros is None or not bool(zeros.any()) else zeros.contiguous()
