"""Compiled products of float32 and bfloat16: of any size, each row as if it were alone."""

import pytest
import torch

from serve_app.models.compiled.float_product import CompiledProduct
from tests.compiled import kernels_or_skip

DTYPES = (torch.float32, torch.bfloat16)
SIZES = [(1, 1), (16, 64), (37, 95), (64, 5000), (130, 2050), (200, 33)]  # outputs and inputs


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def product_of(num_outputs: int, num_inputs: int, dtype: torch.dtype) -> tuple[CompiledProduct, torch.Tensor]:
    weight = torch.randn(num_outputs, num_inputs).to(dtype)
    return CompiledProduct(weight, kernels_or_skip()), weight


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SIZES)
def test_a_row_is_the_same_whatever_is_beside_it(
    num_outputs: int, num_inputs: int, dtype: torch.dtype, num_threads: int
) -> None:
    product, weight = product_of(num_outputs, num_inputs, dtype)
    inputs, bias = torch.randn(101, num_inputs).to(dtype), torch.randn(num_outputs)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        outputs = product.multiply(inputs, bias)
        alone = torch.cat([product.multiply(row[None], bias) for row in inputs])
        few = torch.cat([product.multiply(rows, bias) for rows in torch.split(inputs, 7)])
    finally:
        torch.set_num_threads(before)
    assert outputs.dtype == dtype
    assert torch.equal(outputs, alone)
    assert torch.equal(outputs, few)
    exact = inputs.double() @ weight.double().T + bias.double()
    terms = inputs.double().abs() @ weight.double().abs().T + bias.double().abs()
    allowed = torch.finfo(dtype).eps * exact.abs() + 4 * torch.finfo(torch.float32).eps * terms
    assert bool(((outputs.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weight_comes_back(dtype: torch.dtype) -> None:
    product, weight = product_of(37, 95, dtype)
    assert torch.equal(product.weight(), weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_in_its_row(dtype: torch.dtype) -> None:
    product, _ = product_of(37, 95, dtype)
    inputs = torch.ones(3, 95, dtype=dtype)
    inputs[1, 94] = torch.nan
    is_finite = product.multiply(inputs, None).isfinite()
    assert is_finite.all(dim=1).tolist() == [True, False, True]
    assert not is_finite[1].any()


def test_a_bias_may_be_another_the_next_time() -> None:
    product, _ = product_of(20, 8, torch.float32)
    inputs = torch.zeros(1, 8)
    for bias in (torch.ones(20), None, torch.full((20,), 2.0)):
        expected = torch.zeros(1, 20) if bias is None else bias[None]
        assert torch.equal(product.multiply(inputs, bias), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_that_do_not_fit_are_refused(dtype: torch.dtype) -> None:
    product, _ = product_of(20, 8, dtype)
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    for inputs in (torch.zeros(1, 9, dtype=dtype), torch.zeros(2, 4, dtype=dtype), torch.zeros(1, 8, dtype=other)):
        with pytest.raises(RuntimeError, match=r"do not fit a weight \[20, 8\]"):
            product.multiply(inputs, None)
