"""Every kernel gives the products of the weights that it was given, alone and joined."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from serve_app.models.compiled.library import CompiledKernels
from serve_app.models.linear_kernels import COMPILED, LIBRARY_KERNELS, keeps_weight, make_linears, why_no_kernel
from serve_app.models.packed_linear import multiply_joined
from tests.compiled import kernels_or_skip

SIZES = (64, 16, 24)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAIRS = [(name, dtype) for name in LIBRARY_KERNELS for dtype in DTYPES if why_no_kernel(name, dtype) is None]
PAIRS += [(COMPILED, torch.float32), (COMPILED, torch.bfloat16)]


def own_kernels(name: str) -> CompiledKernels | None:
    """What a kernel needs beside its name; skips where it cannot be had."""
    return kernels_or_skip() if name == COMPILED else None


def layers(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor | None]]:
    torch.manual_seed(0)
    weights = [0.2 * torch.randn(size, 96).to(dtype) for size in SIZES]
    biases = [None if size == 16 else torch.randn(size).to(dtype) for size in SIZES]
    return weights, biases


def is_near(outputs: Tensor, weight: Tensor, bias: Tensor | None, inputs: Tensor) -> bool:
    """Within what float32 rounds the sums to, and the outputs' dtype the result."""
    exact = linear(inputs.double(), weight.double(), None if bias is None else bias.double())
    terms = linear(inputs.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs())
    allowed = 2 * torch.finfo(outputs.dtype).eps * exact.abs() + 8 * torch.finfo(torch.float32).eps * terms
    return bool(((outputs.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize(("name", "dtype"), PAIRS)
@pytest.mark.parametrize("num_rows", [0, 1, 5, 64])
def test_products_are_those_of_the_weights(name: str, dtype: torch.dtype, num_rows: int) -> None:
    weights, biases = layers(dtype)
    inputs = torch.randn(1, num_rows, 96).to(dtype)
    for linears in (
        make_linears(weights, biases, name, own_kernels(name)),
        [make_linears([w], [b], name, own_kernels(name))[0] for w, b in zip(weights, biases, strict=True)],
    ):
        for module, weight, bias in zip(linears, weights, biases, strict=True):
            outputs = module(inputs)
            assert (outputs.dtype, outputs.shape) == (dtype, (1, num_rows, len(weight)))
            assert is_near(outputs, weight, bias, inputs)


@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_inputs_may_be_a_part_of_what_another_product_gave(name: str, dtype: torch.dtype) -> None:
    weights, biases = layers(dtype)
    [module] = make_linears(weights[:1], biases[:1], name, own_kernels(name))
    wide = torch.randn(7, 3, 96).to(dtype)
    for inputs in (wide[:, 1], wide[:1, 1]):
        assert is_near(module(inputs), weights[0], biases[0], inputs)


@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_a_joined_product_is_that_of_its_layers_side_by_side(name: str, dtype: torch.dtype) -> None:
    weights, biases = layers(dtype)
    linears = make_linears(weights, biases, name, own_kernels(name))
    inputs = torch.randn(5, 96).to(dtype)
    joined = multiply_joined(linears, inputs)
    assert joined is not None
    assert torch.equal(joined, torch.cat([one(inputs) for one in linears], dim=-1))


def test_fbgemm_gives_a_row_the_same_whatever_is_beside_it() -> None:
    weights, biases = layers(torch.bfloat16)
    [module] = make_linears(weights[:1], biases[:1], "fbgemm")
    inputs = torch.randn(129, 96).to(torch.bfloat16)
    assert torch.equal(module(inputs), torch.cat([module(inputs[index : index + 1]) for index in range(129)]))


def test_numbers_that_float16_has_not_are_left_to_nn_linear() -> None:
    weight = torch.full((16, 96), 1e5).to(torch.bfloat16)
    [module] = make_linears([weight], [None], "fbgemm")
    assert bool((module(torch.ones(1, 96, dtype=torch.bfloat16)) > 9e6).all())


def test_a_layer_tells_what_its_weight_takes_and_its_dtype() -> None:
    weights, biases = layers(torch.bfloat16)
    linears = make_linears(weights, biases, "fbgemm")
    assert [one.num_bytes for one in linears] == [2 * 96 * size for size in SIZES]
    assert {one.weight.dtype for one in linears} == {torch.bfloat16}


def test_which_kernels_there_are() -> None:
    kept = [keeps_weight(name) for name in ("torch", "gemv", "onednn", "fbgemm", "compiled")]
    assert kept == [True, True, False, False, False]
    assert "not compiled here" in (why_no_kernel("compiled", torch.float32) or "")
    assert "float16" in (why_no_kernel("fbgemm", torch.float32) or "")
    assert {(name, torch.float32) for name in ("torch", "gemv", "onednn")} <= set(PAIRS)
