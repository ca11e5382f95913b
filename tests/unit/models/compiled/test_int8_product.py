"""Compiled int8 against FBGEMM's between rows divided and multiplied by torch: equal to the bit."""

import math

import pytest
import torch

from serve_app.models.compiled.int8_product import CompiledInt8Product, compile_int8
from serve_app.models.int8_linear import Int8Linear, RoundingProduct, join_int8, make_product
from serve_app.models.quantized_weight import QuantizedWeight, quantize_weight
from serve_app.types.shards import WeightScheme
from tests.compiled import int8_kernels_or_skip

SCHEME = WeightScheme(8, has_quantized_inputs=True)


def weight_of(num_outputs: int, num_inputs: int) -> QuantizedWeight:
    return quantize_weight(torch.randn(num_outputs, num_inputs), SCHEME)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 33])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(64, 96), (1, 3), (130, 101), (47, 64)])
def test_the_numbers_are_equal_to_the_bit(
    num_outputs: int, num_inputs: int, dtype: torch.dtype, has_bias: bool, num_rows: int
) -> None:
    kernels = int8_kernels_or_skip()
    weight = weight_of(num_outputs, num_inputs)
    bias = torch.randn(num_outputs) if has_bias else None
    inputs = (torch.randn(1, num_rows, num_inputs) * torch.logspace(-6, 6, num_rows)[:, None]).to(dtype)
    expected = RoundingProduct(make_product(weight)).multiply(inputs, bias)
    found = CompiledInt8Product(weight, kernels).multiply(inputs, bias)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


def test_the_weight_comes_back() -> None:
    weight = weight_of(37, 50)
    back = CompiledInt8Product(weight, int8_kernels_or_skip()).weight()
    assert torch.equal(back.values, weight.values)
    assert torch.equal(back.scales, weight.scales)


@pytest.mark.parametrize("num_inputs", [49, 51])
def test_inputs_of_another_width_are_refused(num_inputs: int) -> None:
    product = CompiledInt8Product(weight_of(37, 50), int8_kernels_or_skip())
    with pytest.raises(RuntimeError, match=r"do not fit a weight \[37, 50\]"):
        product.multiply(torch.zeros(1, num_inputs), None)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_row_that_is_not_finite_has_no_finite_answer(wrong: float) -> None:
    inputs = torch.ones(2, 64)
    inputs[0, 5] = wrong
    outputs = CompiledInt8Product(weight_of(48, 64), int8_kernels_or_skip()).multiply(inputs, None)
    assert outputs[0].isnan().all()
    assert outputs[1].isfinite().all()


def test_layers_of_a_model_stay_joined() -> None:
    kernels = int8_kernels_or_skip()
    linears = [Int8Linear(make_product(weight_of(size, 96)), None) for size in (64, 17)]
    join_int8(linears)
    inputs = torch.randn(3, 96)
    expected = [one(inputs) for one in linears]
    compile_int8(torch.nn.ModuleList(linears), kernels)
    assert isinstance(linears[0].join.product, CompiledInt8Product)
    assert linears[0].join is linears[1].join
    for linear, before in zip(linears, expected, strict=True):
        assert torch.equal(linear(inputs), before)
    assert linears[1].weight().values.shape == (17, 96)
