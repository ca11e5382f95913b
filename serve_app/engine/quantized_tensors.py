"""Reading quantized weights from checkpoints: a rank's part of one, whatever the format packs it in.

compressed-tensors: https://github.com/vllm-project/compressed-tensors (compressors/quantized_compressors)
GPTQ: arXiv:2210.17323, AWQ: arXiv:2306.00978, in the layouts that transformers reads
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from serve_app.checkpoints.quantization import COMPANIONS, PACKED
from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.engine.tensor_file import TensorReader
from serve_app.errors import ConfigError
from serve_app.models.quantized_weight import QuantizedWeight
from serve_app.models.torch_dtypes import DTYPES_OF_FILES, FLOAT8
from serve_app.parallel.tensor_parallel import Part
from serve_app.types.shards import WeightScheme

_INT32_BITS = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(slots=True)
class StoredWeight:
    """The tensors that one quantized weight is stored in, by the ends of their names."""

    tensors: dict[str, TensorHeader] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogicalTensors:
    """A checkpoint's tensors as the model names them: a quantized weight is one tensor called `weight`."""

    headers: dict[str, TensorHeader]
    stored: dict[str, StoredWeight]  # by logical name


def logical_tensors(headers: Mapping[str, TensorHeader]) -> LogicalTensors:
    """Fold what stands beside a quantized weight into it."""
    found: dict[str, TensorHeader] = {}
    stored: dict[str, StoredWeight] = {}
    for name, header in headers.items():
        module, _, leaf = name.rpartition(".")
        if leaf in COMPANIONS or leaf in PACKED:
            stored.setdefault(f"{module}.weight", StoredWeight()).tensors[leaf] = header
            if leaf in PACKED:
                found[f"{module}.weight"] = header
        else:
            found[name] = header
    for name, weight in stored.items():
        if name not in found:
            some = next(iter(weight.tensors))
            raise ConfigError(f"tensor {name.removesuffix('weight')}{some} belongs to no weight; download it again")
        weight.tensors.setdefault("weight", found[name])
    return LogicalTensors(found, stored)


def read_quantized(
    name: str,
    stored: StoredWeight,
    scheme: WeightScheme,
    shape: torch.Size,
    part: Part,
    reader: TensorReader,
) -> QuantizedWeight:
    """A rank's part of a weight of this whole shape [N, K]. Raises ConfigError when its tensors do not fit."""
    source = _Source(name, stored.tensors, reader)
    if "qweight" in stored.tensors:
        weight = _read_gptq(source, shape) if "g_idx" in stored.tensors else _read_awq(source, shape)
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
    """int-quantized, naive-quantized and float-quantized: one number an element."""
    header = source.tensors["weight"]
    dtype = FLOAT8 if scheme.is_float else torch.int8
    if DTYPES_OF_FILES.get(header.dtype) != dtype:
        raise ConfigError(
            f"{source.name} is stored as {header.dtype}, which is not a number of its scheme", field="source"
        )
    values = source.read("weight", dtype, *shape)
    scales = _read_scales(source, scheme, shape)
    zeros = None
    if "weight_zero_point" in source.tensors:
        zeros = source.read("weight_zero_point", torch.int8, *scales.shape)
    return QuantizedWeight(values, scales, scheme.bits, _unless_zero(zeros))


def _read_packed(source: _Source, scheme: WeightScheme, shape: torch.Size) -> QuantizedWeight:
    """pack-quantized: the numbers of a row as one stream of bits in int32, shifted to begin at zero."""
    num_rows, num_columns = shape
    widths = {is_dense: _num_words(num_columns, scheme.bits, is_dense=is_dense) for is_dense in (True, False)}
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
    scales = _read_scales(source, scheme, shape)
    zeros = None
    if "weight_zero_point" in source.tensors:
        num_words = _num_words(num_rows, scheme.bits, is_dense=is_dense)
        words = source.read("weight_zero_point", torch.int32, num_words, scales.shape[1]).t().contiguous()
        zeros = (unpack_words(words, scheme.bits, num_rows, is_dense=is_dense).t() - shift).to(torch.int8)
    weight = QuantizedWeight(values, scales, scheme.bits, _unless_zero(zeros))
    if "weight_g_idx" not in source.tensors:
        return weight
    return _in_group_order(weight, source.read("weight_g_idx", torch.int64, num_columns))


def _read_gptq(source: _Source, shape: torch.Size) -> QuantizedWeight:
    """Eight inputs of an output to an int32; zero points are stored less one."""
    num_rows, num_columns = shape
    packed = source.read("qweight", torch.int32, -(-num_columns // 8), num_rows)
    scales = source.read("scales", torch.float32, None, num_rows)
    zeros = source.read("qzeros", torch.int32, len(scales), -(-num_rows // 8))
    values = unpack_words(packed.t().contiguous(), 4, num_columns)
    zero_points = (unpack_words(zeros, 4, num_rows).t() + 1) & 15
    weight = QuantizedWeight(
        (values - 8).to(torch.int8), scales.t().contiguous(), 4, _unless_zero((zero_points - 8).to(torch.int8))
    )
    return _in_group_order(weight, source.read("g_idx", torch.int64, num_columns))


def _read_awq(source: _Source, shape: torch.Size) -> QuantizedWeight:
    """Eight outputs of an input to an int32, even ones first."""
    num_rows, num_columns = shape
    packed = source.read("qweight", torch.int32, num_columns, -(-num_rows // 8))
    scales = source.read("scales", torch.float32, None, num_rows)
    zeros = source.read("qzeros", torch.int32, len(scales), -(-num_rows // 8))
    places = torch.tensor([_AWQ_ORDER.index(place) for place in range(8)])

    def unpack(words: Tensor) -> Tensor:
        nibbles = unpack_words(words, 4, words.shape[1] * 8).view(len(words), -1, 8)
        return nibbles[:, :, places].reshape(len(words), -1)[:, :num_rows].t().contiguous()

    return QuantizedWeight(
        (unpack(packed) - 8).to(torch.int8),
        scales.t().contiguous(),
        4,
        _unless_zero((unpack(zeros) - 8).to(torch.int8)),
    )


def _read_scales(source: _Source, scheme: WeightScheme, shape: torch.Size) -> Tensor:
    num_rows, num_columns = shape
    header = source.tensors.get("weight_scale")
    if header is not None and tuple(header.shape) in ((), (1,)):  # one for the whole tensor
        return source.read("weight_scale", torch.float32, *header.shape).view(1, 1).expand(num_rows, 1).contiguous()
    num_groups = 1 if scheme.group_size is None else -(-num_columns // scheme.group_size)
    if scheme.group_size is not None and num_columns % scheme.group_size:
        raise ConfigError(f"{source.name}: group_size={scheme.group_size} does not divide its {num_columns} inputs")
    return source.read("weight_scale", torch.float32, num_rows, num_groups)


def _num_words(count: int, bits: int, *, is_dense: bool) -> int:
    return -(-count * bits // _INT32_BITS) if is_dense else -(-count // (_INT32_BITS // bits))


def unpack_words(words: Tensor, bits: int, count: int, *, is_dense: bool = True) -> Tensor:
    """words [R, W] int32 -> [R, count] int32, the lowest bits first."""
    per_word = _INT32_BITS // bits
    places = torch.arange(count)
    firsts = places * bits if is_dense else places // per_word * _INT32_BITS + places % per_word * bits
    index, shift = firsts // _INT32_BITS, firsts % _INT32_BITS
    wide = words.to(torch.int64) & 0xFFFFFFFF
    nexts = torch.nn.functional.pad(wide, (0, 1))[:, index + 1]  # where a number crosses into it
    numbers: Tensor = ((wide[:, index] | nexts << _INT32_BITS) >> shift) & (2**bits - 1)
    return numbers.to(torch.int32)


def _in_group_order(weight: QuantizedWeight, groups: Tensor) -> QuantizedWeight:
    """Columns sorted by their group, with the inputs that they belong to; groups [K] int64."""
    num_columns, num_groups = weight.values.shape[1], weight.scales.shape[1]
    size = num_columns // num_groups
    if torch.equal(groups, torch.arange(num_columns) // size) or bool((groups < 0).all()):
        return weight
    if not torch.equal(groups.bincount(minlength=num_groups), torch.full((num_groups,), size)):
        raise ConfigError("g_idx gives groups of different sizes, which is not served", field="source")
    order = groups.argsort(stable=True)
    return QuantizedWeight(weight.values[:, order], weight.scales, weight.bits, weight.zero_points, order)


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
        return QuantizedWeight(weight.values[rows], weight.scales[rows], weight.bits, zeros, weight.input_order)
    size, num_groups = weight.group_size, weight.scales.shape[1]
    if weight.input_order is not None:
        raise ConfigError(f"{name} has its inputs in an order of its own (act-order), which tensor ranks cannot cut")
    if num_groups > 1 and any(start % size or end % size for start, end in part.ranges):
        raise ConfigError(f"parallel.tensor cuts {name} within groups of {size} inputs; use fewer ranks")
    columns = torch.cat([torch.arange(start, end) for start, end in part.ranges])
    groups = torch.zeros(1, dtype=torch.int64) if num_groups == 1 else columns[::size] // size
    zeros = None if weight.zero_points is None else weight.zero_points[:, groups]
    return QuantizedWeight(weight.values[:, columns], weight.scales[:, groups], weight.bits, zeros)
