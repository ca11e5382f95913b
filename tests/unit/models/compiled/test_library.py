"""Each compiled kernel against what torch gives; a row alone gives the bits it gives among many."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from serve_app.models.fused_decoder import RotaryTables
from tests.compiled import kernels_or_skip

DTYPES = [torch.float32, torch.bfloat16]
NUM_ROWS = 70  # many enough for threads to share


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rows_of(width: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(1, NUM_ROWS, width) * torch.logspace(-3, 1, NUM_ROWS)[:, None]).to(dtype)


def is_close(found: Tensor, expected: Tensor) -> bool:
    """In bfloat16, a number between two may be rounded to the other one."""
    eps = torch.finfo(expected.dtype).eps
    return torch.allclose(found.float(), expected.float(), rtol=max(2 * eps, 2e-6), atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [96, 257, 768])
def test_norm(width: int, dtype: torch.dtype) -> None:
    kernels = kernels_or_skip()
    norm = LlamaRMSNorm(width, eps=1e-5).to(dtype)
    norm.weight.data = torch.randn(width).to(dtype)
    rows = rows_of(width, dtype)
    found = kernels.norm(rows, norm.weight, 1e-5)
    assert is_close(found, norm(rows))
    alone = [kernels.norm(rows[:, index : index + 1], norm.weight, 1e-5) for index in range(NUM_ROWS)]
    assert torch.equal(torch.cat(alone, dim=1), found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [33, 512])
def test_silu_product(width: int, dtype: torch.dtype) -> None:
    kernels = kernels_or_skip()
    joined = rows_of(2 * width, dtype)
    gate, up = joined.chunk(2, dim=-1)
    found = kernels.silu_product(joined)
    assert is_close(found, silu(gate) * up)
    alone = [kernels.silu_product(joined[:, index : index + 1]) for index in range(NUM_ROWS)]
    assert torch.equal(torch.cat(alone, dim=1), found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 50, 1031])
def test_finite_largest(width: int, dtype: torch.dtype) -> None:
    kernels = kernels_or_skip()
    rows = torch.randn(NUM_ROWS, width).to(dtype)
    rows[3, width // 2] = rows[4, 0] = rows[5, -1] = torch.inf
    rows[6, width // 3], rows[7], rows[8, width // 2] = torch.nan, -torch.inf, -torch.inf
    rows[9, width // 3], rows[9, width // 2] = torch.inf, torch.nan
    rows[10] = 7
    largest, places = rows.max(dim=-1)
    assert not largest.isfinite().all()
    assert torch.equal(kernels.finite_largest(rows, -5), torch.where(largest.isfinite(), places, -5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 24, 128])
def test_rotary_positions_are_torch_s_to_the_bit(head_dim: int, dtype: torch.dtype) -> None:
    kernels = kernels_or_skip()
    angles = torch.randn(1, NUM_ROWS, head_dim)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    joined = torch.randn(NUM_ROWS, 5 * head_dim).to(dtype)
    heads = joined.view(NUM_ROWS, 5, head_dim)[:, :3]  # as queries and keys lie beside values
    values = joined[:, 3 * head_dim :].clone()
    expected = RotaryTables(cos, sin).rotated(heads.clone())
    assert torch.equal(RotaryTables(cos, sin, kernels).rotated(heads), expected)
    assert torch.equal(joined[:, 3 * head_dim :], values)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(wrong: float) -> None:
    kernels = kernels_or_skip()
    rows = torch.ones(2, 40)
    rows[0, 7] = wrong
    for found in (kernels.norm(rows, torch.ones(40), 1e-5), kernels.silu_product(rows)):
        assert not found[0].isfinite().all()
        assert found[1].isfinite().all()
