"""A rank's part of a quantized weight: the numbers that the whole has there, out of no more bytes than hold them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.checkpoints.quantized_modules import WordLayout
from serve_app.checkpoints.safetensors_header import TensorHeader, read_safetensors_header
from serve_app.checkpoints.stored_weights import StoredWeight
from serve_app.engine.quantized_tensors import read_quantized
from serve_app.engine.tensor_file import TensorReader
from serve_app.errors import ConfigError
from serve_app.models.quantized_weight import QuantizedWeight
from serve_app.parallel.tensor_parallel import Part
from serve_app.types.shards import WeightScheme
from tests.quantized_checkpoints import AWQ_ORDER, bit_stream, loose_words

N, K = 40, 96  # whole words of AWQ; in 3 bits, N is no whole number of words
FLOAT8 = torch.float8_e4m3fn


class CountingReader(TensorReader):
    """Counts the bytes that it is asked for, by tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: dict[TensorHeader, int] = {}

    def read(self, header: TensorHeader, out: Tensor, dim: int | None, ranges: tuple[tuple[int, int], ...]) -> None:
        item_bytes = header.num_bytes // math.prod(header.shape)
        self.num_bytes[header] = self.num_bytes.get(header, 0) + out.numel() * item_bytes
        super().read(header, out, dim, ranges)


@dataclass
class Stored:
    """What a format stores, and what it stands for."""

    tensors: dict[str, Tensor]
    scheme: WeightScheme
    values: Tensor  # [N, K]
    scales: Tensor  # [N, G], a column for each group of `scheme.group_size` inputs
    zeros: Tensor | None = None  # [N, G]
    layout: WordLayout | None = None
    output_dims: dict[str, int] = field(default_factory=dict)  # of stored tensors whose outputs are not dimension 0
    order: Tensor | None = None


class Draw:
    """Random tensors, the same each time."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(3)

    def numbers(self, bits: int, *shape: int) -> Tensor:
        return torch.randint(0, 2**bits, shape, generator=self._generator)

    def scales(self, *shape: int) -> Tensor:
        return (torch.rand(shape, generator=self._generator) + 0.1).to(torch.float16).to(torch.float32)

    def order(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self._generator)


def num_groups(group: int | None) -> int:
    return 1 if group is None else -(-K // group)


def int8(group: int | None, *, has_zeros: bool) -> Stored:
    draw, scheme = Draw(), WeightScheme(8, group_size=group)
    values = (draw.numbers(8, N, K) - 128).to(torch.int8)
    scales = draw.scales(N, num_groups(group))
    zeros = (draw.numbers(8, *scales.shape) - 128).to(torch.int8) if has_zeros else None
    tensors = {"weight": values, "weight_scale": scales} | ({} if zeros is None else {"weight_zero_point": zeros})
    return Stored(tensors, scheme, values, scales, zeros)


def one_scale() -> Stored:
    values = (Draw().numbers(8, N, K) - 128).to(torch.int8)
    scale, zero = torch.tensor([0.25]), torch.tensor([3], dtype=torch.int8)
    tensors = {"weight": values, "weight_scale": scale, "weight_zero_point": zero}
    return Stored(tensors, WeightScheme(8), values, scale.expand(N, 1), zero.expand(N, 1))


def float8(block: tuple[int, int] | None, *, has_one_scale: bool = False) -> Stored:
    draw = Draw()
    values = draw.scales(N, K).to(FLOAT8)
    if has_one_scale:
        scheme, scale = WeightScheme(8, is_float=True, has_static_inputs=True), torch.tensor(0.5)
        tensors = {"weight": values, "weight_scale": scale, "input_scale": torch.tensor([0.02])}
        return Stored(tensors, scheme, values, scale.expand(N, 1))
    rows, columns = block or (1, None)
    scheme = WeightScheme(8, is_float=True, group_size=columns, block_rows=None if block is None else rows)
    scales = draw.scales(-(-N // rows), num_groups(columns))
    spread = scales.repeat_interleave(rows, 0)[:N]
    return Stored({"weight": values, "weight_scale": scales}, scheme, values, spread)


def packed(bits: int, group: int | None, *, is_dense: bool = True, has_zeros: bool = True) -> Stored:
    draw, scheme = Draw(), WeightScheme(bits, group_size=group)
    pack: Callable[[Tensor, int], Tensor] = bit_stream if is_dense else loose_words
    numbers, scales = draw.numbers(bits, N, K), draw.scales(N, num_groups(group))
    zeros = draw.numbers(bits, *scales.shape)
    tensors = {
        "weight_packed": pack(numbers, bits),
        "weight_shape": torch.tensor([N, K]),
        "weight_scale": scales,
        "weight_g_idx": torch.arange(K, dtype=torch.int32) // (group or K),
    }
    if has_zeros:
        tensors["weight_zero_point"] = pack(zeros.t(), bits).t().contiguous()
    return Stored(tensors, scheme, signed(numbers, bits), scales, signed(zeros, bits) if has_zeros else None)


def gptq(bits: int, group: int | None, *, is_v2: bool = False, has_order: bool = False) -> Stored:
    draw, scheme = Draw(), WeightScheme(bits, group_size=group)
    numbers, scales = draw.numbers(bits, N, K), draw.scales(N, num_groups(group))
    zeros = draw.numbers(bits, *scales.shape)
    groups = torch.arange(K) // (group or K)
    tensors = {
        "qweight": bit_stream(numbers, bits).t().contiguous(),
        "scales": scales.t().to(torch.float16).contiguous(),
        "qzeros": bit_stream((zeros.t() - (0 if is_v2 else 1)) % 2**bits, bits),
    }
    order = None
    if has_order:
        groups = groups[draw.order(K)]
        order = groups.argsort(stable=True)
    tensors["g_idx"] = groups.to(torch.int32)
    values = signed(numbers, bits) if order is None else signed(numbers, bits)[:, order]
    layout: WordLayout = "gptq_v2" if is_v2 else "gptq"
    turned = dict.fromkeys(("qweight", "scales", "qzeros"), 1)
    return Stored(tensors, scheme, values, scales, signed(zeros, bits), layout, turned, order)


def awq(group: int | None, *, is_gemv: bool = False) -> Stored:
    draw, scheme = Draw(), WeightScheme(4, group_size=group)
    numbers, scales = draw.numbers(4, N, K), draw.scales(N, num_groups(group))
    zeros = draw.numbers(4, *scales.shape)
    if not is_gemv:
        tensors = {
            "qweight": bit_stream(shuffled(numbers.t()), 4),
            "scales": scales.t().to(torch.float16).contiguous(),
            "qzeros": bit_stream(shuffled(zeros.t()), 4),
        }
        turned = dict.fromkeys(tensors, 1)
        return Stored(tensors, scheme, signed(numbers, 4), scales, signed(zeros, 4), "awq_gemm", turned)
    width = 8 * {64: 2, 32: 4}.get(group or 128, 1)
    padding = (0, width - zeros.shape[1])
    tensors = {
        "qweight": bit_stream(numbers, 4),
        "scales": torch.nn.functional.pad(scales, padding).to(torch.float16),
        "qzeros": bit_stream(torch.nn.functional.pad(zeros, padding), 4),
    }
    return Stored(tensors, scheme, signed(numbers, 4), scales, signed(zeros, 4), "awq_gemv")


def signed(numbers: Tensor, bits: int) -> Tensor:
    return numbers.sub(2 ** (bits - 1)).to(torch.int8)


def shuffled(numbers: Tensor) -> Tensor:
    return numbers.reshape(len(numbers), -1, 8)[:, :, AWQ_ORDER].flatten(1)


FORMATS: dict[str, Callable[[], Stored]] = {
    "int8": lambda: int8(None, has_zeros=False),
    "int8, zero points": lambda: int8(None, has_zeros=True),
    "int8 in groups, zero points": lambda: int8(16, has_zeros=True),
    "int8 in groups, the last shorter": lambda: int8(40, has_zeros=False),
    "int8, one scale": one_scale,
    "float8": lambda: float8(None),
    "float8, one scale": lambda: float8(None, has_one_scale=True),
    "float8 in blocks": lambda: float8((8, 16)),
    "float8 in blocks that do not divide": lambda: float8((24, 40)),
    "packed, no groups": lambda: packed(4, None, has_zeros=False),
    "packed 4 bits, no number across words": lambda: packed(4, 16, is_dense=False),
    "packed 3 bits, no number across words": lambda: packed(3, 16, is_dense=False),
    "gptq, no groups": lambda: gptq(4, None),
    "gptq 3 bits v2, the last group shorter": lambda: gptq(3, 40, is_v2=True),
    "awq gemm": lambda: awq(16),
    "awq gemm, no groups": lambda: awq(None),
    "awq gemv, groups of 16": lambda: awq(16, is_gemv=True),
    "awq gemv, groups of 32": lambda: awq(32, is_gemv=True),
    "awq gemv, the last group shorter": lambda: awq(64, is_gemv=True),
    "awq gemv, no groups": lambda: awq(None, is_gemv=True),
}
for _bits in (2, 3, 4, 8):
    FORMATS[f"packed {_bits} bits"] = lambda bits=_bits: packed(bits, 16)  # type: ignore[misc]
    FORMATS[f"packed {_bits} bits, the last group shorter"] = lambda bits=_bits: packed(bits, 40)  # type: ignore[misc]
    FORMATS[f"gptq {_bits} bits"] = lambda bits=_bits: gptq(bits, 16)  # type: ignore[misc]
    FORMATS[f"gptq {_bits} bits v2"] = lambda bits=_bits: gptq(bits, 16, is_v2=True)  # type: ignore[misc]
ORDERED = {f"gptq {bits} bits, act-order": bits for bits in (3, 4)}

PARTS = {
    0: [((0, 13),), ((13, 27),), ((27, 40),), ((0, 5), (16, 21), (32, 35)), ((8, 24),), ((39, 40),), ((4, 4),)],
    1: [((0, 27),), ((27, 53),), ((64, 96),), ((16, 32), (48, 64)), ((33, 34), (40, 47)), ((32, 64),), ((24, 56),)],
}
CUTS = [(dim, ranges) for dim, several in PARTS.items() for ranges in several] + [(None, ()), (0, ((0, N),))]


def store(directory: Path, stored: Stored) -> StoredWeight:
    path = directory / "model.safetensors"
    save_file({"before": torch.zeros(3, dtype=torch.uint8)} | stored.tensors, path)
    headers = read_safetensors_header(path)
    weight = StoredWeight({name: headers[name] for name in stored.tensors})
    weight.tensors.setdefault("weight", next(iter(weight.tensors.values())))
    return weight


def read(stored: Stored, weight: StoredWeight, part: Part) -> tuple[QuantizedWeight, CountingReader]:
    reader = CountingReader()
    try:
        return read_quantized("w", weight, stored.scheme, stored.layout, torch.Size((N, K)), part, reader), reader
    finally:
        reader.close()


def whole_then_cut(stored: Stored, dim: int | None, ranges: tuple[tuple[int, int], ...]) -> QuantizedWeight:
    """The whole matrix, and of that the rows or columns: what a part is."""
    rows, columns = torch.arange(N), torch.arange(K)
    if dim is not None:
        wanted = torch.cat([torch.arange(start, end) for start, end in ranges])
        rows, columns = (wanted, columns) if dim == 0 else (rows, wanted)
    groups = torch.zeros(1, dtype=torch.int64)
    size = stored.scheme.group_size
    if size is not None:
        edges = [edge for one in ranges for edge in one] if dim == 1 else []
        groups = columns[:: math.gcd(size, K, *edges)] // size
    values = stored.values.view(torch.uint8)[rows][:, columns].view(stored.values.dtype)
    zeros = None if stored.zeros is None else stored.zeros[rows][:, groups]
    zeros = None if zeros is None or not zeros.any() else zeros
    input_scale = torch.tensor(0.02) if stored.scheme.has_static_inputs else None
    scales = stored.scales[rows][:, groups]
    return QuantizedWeight(values, scales, stored.scheme.bits, zeros, stored.order, input_scale)


def assert_same(got: QuantizedWeight, expected: QuantizedWeight) -> None:
    assert got.bits == expected.bits
    for name in ("values", "scales", "zero_points", "input_order", "input_scale"):
        one, other = getattr(got, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if other is not None:
            assert one.dtype == other.dtype, name
            assert one.shape == other.shape, name
            assert one.is_contiguous(), name
            assert one.flatten().view(torch.uint8).tolist() == other.flatten().view(torch.uint8).tolist(), name


@pytest.mark.parametrize("kind", FORMATS)
def test_a_part_is_read_alone_and_is_that_of_the_whole(kind: str, tmp_path: Path) -> None:
    stored = FORMATS[kind]()
    weight = store(tmp_path, stored)
    for dim, ranges in CUTS:
        got, reader = read(stored, weight, Part(dim, ranges))
        assert_same(got, whole_then_cut(stored, dim, ranges))
        if dim is not None:
            assert_reads_its_share(stored, weight, reader, dim, ranges)


def assert_reads_its_share(
    stored: Stored, weight: StoredWeight, reader: CountingReader, dim: int, ranges: tuple[tuple[int, int], ...]
) -> None:
    """Of each tensor no more than the part's share, and the rest of a word or a group at each edge of a range."""
    share = sum(end - start for start, end in ranges) / (N, K)[dim]
    for leaf in stored.tensors.keys() - {"g_idx", "weight_g_idx", "weight_shape"}:  # which are of the whole
        header = weight.tensors[leaf]
        cut_dim = dim ^ stored.output_dims.get(leaf, 0)
        num_lines = header.shape[cut_dim] if len(header.shape) == 2 else 1
        most = share * header.num_bytes + 2 * len(ranges) * header.num_bytes / num_lines
        assert reader.num_bytes.get(header, 0) <= most, leaf


@pytest.mark.parametrize("kind", ORDERED)
def test_inputs_in_an_order_of_their_own_are_cut_along_outputs_alone(kind: str, tmp_path: Path) -> None:
    stored = gptq(ORDERED[kind], 16, has_order=True)
    weight = store(tmp_path, stored)
    for ranges in PARTS[0]:
        assert_same(read(stored, weight, Part(0, ranges))[0], whole_then_cut(stored, 0, ranges))
    with pytest.raises(ConfigError, match=r"w has its inputs in an order of its own \(act-order\), which tensor"):
        read(stored, weight, Part(1, ((0, 48),)))


@pytest.mark.parametrize(("group", "firsts"), [(40, []), (40, [0, 1]), (16, [0, 9]), (16, [0, -1]), (16, [0, 1, 1])])
def test_groups_of_different_sizes_are_refused(group: int, firsts: list[int], tmp_path: Path) -> None:
    stored = gptq(4, group)
    index = torch.arange(K) // group
    stored.tensors["g_idx"] = index.flip(0).to(torch.int32)  # the last of 40 is shorter: no order makes them equal
    stored.tensors["g_idx"][: len(firsts)] = torch.tensor(firsts).to(torch.int32)
    weight = store(tmp_path, stored)
    with pytest.raises(ConfigError, match="w: g_idx gives groups of different sizes, which is not served"):
        read(stored, weight, Part())


def test_a_rank_finds_a_bad_scale_of_its_own(tmp_path: Path) -> None:
    stored = gptq(4, 16)
    stored.tensors["scales"][3, 30] = torch.nan  # of output 30 and inputs 48 to 64
    weight = store(tmp_path, stored)
    for part in (Part(), Part(0, ((27, 40),)), Part(1, ((63, 64),))):
        with pytest.raises(ConfigError, match="w: a scale is negative or not finite; compress the model again"):
            read(stored, weight, part)
    read(stored, weight, Part(0, ((0, 27),)))
    read(stored, weight, Part(1, ((64, 80),)))


@pytest.mark.parametrize("leaf", ["qweight", "scales", "qzeros", "g_idx"])
@pytest.mark.parametrize("part", [Part(), Part(0, ((0, 8),)), Part(1, ((0, 16),))], ids=str)
def test_a_tensor_of_another_shape_is_refused_whatever_the_part(leaf: str, part: Part, tmp_path: Path) -> None:
    stored = gptq(4, 16)
    stored.tensors[leaf] = torch.cat([stored.tensors[leaf], stored.tensors[leaf][:1]])
    weight = store(tmp_path, stored)
    with pytest.raises(ConfigError, match=rf"w: {leaf} has shape \[.*\] in .*, its weight needs \["):
        read(stored, weight, part)
