"""Each kernel against its dequantized reference; a row's answer does not depend on the rows beside it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from serve_app.models.int8_linear import (
    FbgemmProduct,
    Int8Linear,
    Int8Product,
    OnednnProduct,
    exact_limit,
    join_int8,
    make_product,
)
from serve_app.models.packed_linear import PackedLinear
from serve_app.models.quantization import (
    CpuInt4Linear,
    CpuInt8WeightLinear,
    DequantizingLinear,
    QuantizedEmbedding,
    make_linear,
)
from serve_app.models.quantized_weight import QuantizedWeight, quantize_weight
from serve_app.types.shards import WeightScheme

INT8 = WeightScheme(8, has_quantized_inputs=True)
INT8_WEIGHT = WeightScheme(8)
INT4 = WeightScheme(4, group_size=32)
FP8 = WeightScheme(8, is_float=True, has_quantized_inputs=True)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def made(scheme: WeightScheme, num_outputs: int = 64, num_inputs: int = 96) -> tuple[PackedLinear, Tensor, Tensor]:
    """A kernel, the matrix that it stands for, and its bias."""
    weight = quantize_weight(torch.randn(num_outputs, num_inputs), scheme)
    bias = torch.randn(num_outputs)
    return make_linear(weight, bias, scheme), weight.dequantized(), bias


@pytest.mark.parametrize(
    ("scheme", "kernel", "tolerance"),
    [
        (INT8, Int8Linear, 2e-2),  # 7 bits of inputs where 8 would saturate
        (INT8_WEIGHT, CpuInt8WeightLinear, 1e-2),  # bfloat16
        (INT4, CpuInt4Linear, 1e-2),
        (WeightScheme(3, group_size=32), CpuInt4Linear, 1e-2),
        (WeightScheme(4, group_size=48), DequantizingLinear, 1e-6),
        (FP8, DequantizingLinear, 4e-2),  # 4 bits of inputs
        (WeightScheme(8, is_float=True), DequantizingLinear, 1e-6),
    ],
)
@pytest.mark.parametrize("num_rows", [1, 8, 33])
def test_a_kernel_gives_what_its_dequantized_weight_gives(
    scheme: WeightScheme, kernel: type[PackedLinear], tolerance: float, num_rows: int
) -> None:
    module, matrix, bias = made(scheme)
    assert isinstance(module, kernel)
    inputs = torch.randn(num_rows, 96) * torch.rand(num_rows, 1) * 10
    expected = linear(inputs, matrix, bias)
    error = (module(inputs) - expected).norm() / expected.norm()
    assert error < tolerance


@pytest.mark.parametrize("scheme", [INT8, INT8_WEIGHT, INT4, WeightScheme(4, group_size=48), FP8])
def test_no_rows_ask_no_kernel(scheme: WeightScheme, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _matrix, _bias = made(scheme)
    monkeypatch.delattr(type(module), "multiply", raising=False)
    for shape in ((0, 96), (1, 0, 96)):
        outputs = module(torch.zeros(shape, dtype=torch.bfloat16))
        assert (outputs.shape, outputs.dtype) == ((*shape[:-1], 64), torch.bfloat16)


@pytest.mark.parametrize("scheme", [INT8, INT8_WEIGHT, INT4])
def test_a_row_is_answered_alone_as_beside_others(scheme: WeightScheme) -> None:
    module, _matrix, _bias = made(scheme)
    inputs = torch.randn(16, 96) * torch.logspace(-3, 3, 16)[:, None]
    together = module(inputs)
    for index in range(16):
        alone = module(inputs[index : index + 1].clone())
        assert (alone[0] - together[index]).abs().max() <= 1e-5 * together[index].abs().max()


Kind = Callable[[QuantizedWeight, int], Int8Product]
KINDS: list[Kind] = [FbgemmProduct, OnednnProduct]


@pytest.mark.parametrize("kind", KINDS)
def test_int8_is_exact_where_inputs_are_whole(kind: Kind) -> None:
    values = torch.randint(-127, 128, (32, 64), dtype=torch.int8)
    limit = exact_limit(kind)
    inputs = torch.randint(-limit, limit + 1, (5, 64))
    inputs[:, 0] = limit  # so that every row's scale is 1
    outputs = Int8Linear(kind(QuantizedWeight(values, torch.ones(32, 1), 8), limit), None)(inputs.float())
    assert torch.equal(outputs.to(torch.int64), inputs @ values.to(torch.int64).t())


@pytest.mark.parametrize("kind", KINDS)
def test_no_product_saturates(kind: Kind) -> None:
    weight = QuantizedWeight(torch.full((16, 256), -127, dtype=torch.int8), torch.ones(16, 1), 8)
    outputs = Int8Linear(kind(weight, exact_limit(kind)), None)(torch.full((1, 256), -1.0))
    assert torch.allclose(outputs, torch.full((1, 16), 127.0 * 256), rtol=1e-6)


def test_libraries_give_the_same_numbers() -> None:
    weight = quantize_weight(torch.randn(48, 96), INT8)
    inputs = torch.randn(7, 96)
    outputs = [Int8Linear(kind(weight, 63), None)(inputs) for kind in KINDS]
    assert torch.allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-4)


def test_one_row_is_rounded_as_many_are() -> None:
    """One has fewer calls made for it, of the same arithmetic: not even a rounding differs."""
    module, _matrix, _bias = made(INT8)
    inputs = torch.randn(2000, 96)
    together = module(inputs)
    alone = torch.cat([module(inputs[index : index + 1]) for index in range(len(inputs))])
    assert torch.equal(alone, together)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_rows", [1, 5])
def test_joined_linears_give_what_each_gives_alone(kind: Kind, num_rows: int) -> None:
    weights = [quantize_weight(torch.randn(size, 96), INT8) for size in (64, 16, 16)]
    bias = torch.randn(16)
    linears = [Int8Linear(kind(one, 63), bias if index == 1 else None) for index, one in enumerate(weights)]
    inputs = [torch.randn(num_rows, 96) for _ in range(3)]
    expected = [[linear(one) for linear in linears] for one in inputs]
    join_int8(linears)
    for one, outputs in zip(inputs, expected, strict=True):
        for module, before in zip(linears, outputs, strict=True):
            assert torch.equal(module(one), before)
    assert torch.equal(linears[2](inputs[0]), expected[0][2])  # out of turn, alone
    assert torch.equal(linears[0](inputs[1]), expected[1][0])
    inputs[1].mul_(2)  # the same tensor with other numbers, asked for a second time
    assert torch.allclose(linears[0](inputs[1]), 2 * expected[1][0])
    assert [torch.equal(one.weight().values, two.values) for one, two in zip(linears, weights, strict=True)]


def test_float8_inputs_are_rounded_where_no_kernel_takes_them() -> None:
    """So that quality measured on a CPU is that of the kernel."""
    module, matrix, bias = made(FP8)
    inputs = torch.randn(9, 96) * torch.logspace(-3, 3, 9)[:, None]
    steps = inputs.abs().amax(dim=1, keepdim=True) / 448
    rounded = (inputs / steps).to(torch.float8_e4m3fn).float() * steps
    assert torch.allclose(module(inputs), linear(rounded, matrix, bias), rtol=1e-5, atol=1e-4)
    assert not torch.allclose(module(inputs), linear(inputs, matrix, bias), rtol=1e-3)


def test_zero_and_huge_rows_stay_finite() -> None:
    module, _matrix, bias = made(INT8)
    outputs = module(torch.stack([torch.zeros(96), torch.full((96,), 1e30)]))
    assert torch.allclose(outputs[0], bias)
    assert torch.isfinite(outputs).all()


def test_a_zero_point_and_an_order_of_inputs_are_honoured() -> None:
    values = torch.randint(-8, 8, (16, 64), dtype=torch.int8)
    zeros = torch.randint(-8, 8, (16, 2), dtype=torch.int8)
    order = torch.randperm(64)
    weight = QuantizedWeight(values, torch.rand(16, 2), 4, zeros, order)
    module = make_linear(weight, None, INT4)
    assert isinstance(module, CpuInt4Linear)
    inputs = torch.randn(3, 64)
    expected = inputs @ weight.dequantized().t()
    assert (module(inputs) - expected).norm() / expected.norm() < 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_zeros", [False, True])
def test_a_weight_is_the_same_whether_it_is_made_whole_in_float32_or_in_half(
    dtype: torch.dtype, has_zeros: bool
) -> None:
    zeros = torch.randint(-128, 128, (16, 4), dtype=torch.int8) if has_zeros else None
    weight = QuantizedWeight(torch.randint(-128, 128, (16, 64), dtype=torch.int8), torch.rand(16, 4), 8, zeros)
    assert torch.equal(weight.dequantized(dtype, through=dtype), weight.dequantized(dtype))


@pytest.mark.parametrize("num_rows", [1, 5])
def test_numbers_on_cpu_are_those_of_torch_s_operators(num_rows: int) -> None:
    """To the bit: what GPUs need changes none."""
    inputs, bias = torch.randn(num_rows, 96) * 3, torch.randn(64)
    half = inputs.bfloat16()
    weight = quantize_weight(torch.randn(64, 96), INT8_WEIGHT)
    packed = torch.ops.aten._weight_int8pack_mm(half, weight.values, weight.scales.view(-1).bfloat16())
    assert torch.equal(make_linear(weight, bias, INT8_WEIGHT)(inputs), packed + bias)
    weight = quantize_weight(torch.randn(64, 96), INT4)
    words = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.values.int() + 8, 1)
    scales = torch.stack([weight.scales.t(), torch.zeros(3, 64)], dim=2).bfloat16()
    products = torch.ops.aten._weight_int4pack_mm_for_cpu(half, words, 32, scales)
    assert torch.equal(make_linear(weight, bias, INT4)(inputs), products + bias)
    weight = quantize_weight(torch.randn(64, 96), INT8)
    product = make_product(weight)
    maxima = inputs.abs().amax(dim=1, keepdim=True)
    integers = product.multiply(inputs * (torch.full_like(maxima, product.limit) / maxima))
    assert torch.equal(make_linear(weight, bias, INT8)(inputs), integers * (maxima / product.limit) + bias)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_nearest_numbers_are_taken(bits: int) -> None:
    matrix = torch.randn(4, 64)
    weight = quantize_weight(matrix, WeightScheme(bits, group_size=16))
    assert weight.values.min() >= -(2 ** (bits - 1))
    steps = weight.scales.repeat_interleave(16, dim=1)
    assert ((weight.dequantized() - matrix).abs() <= steps / 2 + 1e-6).all()


def test_an_embedding_gives_its_rows() -> None:
    weight = quantize_weight(torch.randn(20, 8), INT8_WEIGHT)
    table = QuantizedEmbedding(weight, torch.float32)
    ids = torch.tensor([[3, 19], [0, 3]])
    assert torch.equal(table(ids), weight.dequantized()[ids])


def test_bfloat16_goes_in_and_out() -> None:
    for scheme in (INT8, INT8_WEIGHT, INT4, FP8):
        module, _matrix, _bias = made(scheme)
        assert module(torch.randn(2, 3, 96).bfloat16()).dtype == torch.bfloat16
        assert module(torch.randn(2, 3, 96).bfloat16()).shape == (2, 3, 64)
