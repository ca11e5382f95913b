"""The kernels as CPUs with fewer instructions compile them."""

import shutil
from pathlib import Path

import pytest
import torch

from serve_app.engine.attention.backend import DecodeRows
from serve_app.engine.attention.compiled import CompiledBackend
from serve_app.engine.attention.reference import attend_one
from serve_app.models.compiled.build import compiled_kernels
from serve_app.models.compiled.float_product import CompiledProduct
from serve_app.models.compiled.library import CompiledKernels
from serve_app.types.shards import EngineLimits
from tests.compared_stage import Compared
from tests.compiled import kernels_or_skip
from tests.plain_driver import greedy, load_runner, run_in_process
from tests.quantized_checkpoints import make_model

pytestmark = pytest.mark.slow  # each compiles anew
WITHOUT = {
    "no bfloat16": "-mno-avx512bf16",
    "AVX2": "-mno-avx512f",
    "plain loops": "-mno-avx -mno-fma",
}


@pytest.fixture(scope="module", params=list(WITHOUT.values()), ids=list(WITHOUT))
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CompiledKernels:
    kernels_or_skip()
    directory = tmp_path_factory.mktemp("kernels")
    compiler = directory / "compiler"
    own = next(path for name in ("g++", "c++", "clang++") if (path := shutil.which(name)) is not None)
    compiler.write_text(f'#!/bin/sh\nexec {own} "$@" {request.param}\n')
    compiler.chmod(0o755)
    choice = compiled_kernels(directory / "kept", str(compiler))
    assert choice.kernels is not None, choice.how
    return choice.kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(37, 95), (130, 2050)])
def test_products(kernels: CompiledKernels, num_outputs: int, num_inputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(num_outputs, num_inputs).to(dtype), torch.randn(13, num_inputs).to(dtype)
    product = CompiledProduct(weight, kernels)
    outputs = product.multiply(inputs, None)
    assert torch.equal(outputs, torch.cat([product.multiply(row[None], None) for row in inputs]))
    exact = inputs.double() @ weight.double().T
    terms = inputs.double().abs() @ weight.double().abs().T
    allowed = torch.finfo(dtype).eps * exact.abs() + 4 * torch.finfo(torch.float32).eps * terms
    assert bool(((outputs.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [24, 64, 128])
def test_attention(kernels: CompiledKernels, head_dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    lengths, block_size, num_kv_heads = [1, 33, 70], 16, 2
    keys, values = (torch.randn(15 * block_size, num_kv_heads, head_dim).to(dtype) for _ in range(2))
    query = torch.randn(len(lengths), 6, head_dim).to(dtype)
    tables = torch.randperm(15).view(3, 5)
    rows = DecodeRows(tables, torch.tensor(lengths), max(lengths))
    found = CompiledBackend(block_size, kernels).decode(query, keys, values, rows, 0.2, None, None, None)
    for index, length in enumerate(lengths):
        slots = (tables[index, :, None] * block_size + torch.arange(block_size)).flatten()[:length]
        one = query[index, :, None].float(), keys[slots].float(), values[slots].float()
        expected = attend_one(*one, 0.2, None, None)[0]
        assert torch.allclose(found[index].float(), expected, atol=1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_layers_in_one_call(kernels: CompiledKernels, dtype: str, tmp_path: Path) -> None:
    limits = EngineLimits(max_num_seqs=3, max_num_batched_tokens=64, max_model_len=64, block_size=4, num_blocks=64)
    directory = make_model("qwen3", tmp_path, max_position_embeddings=256)
    runner = load_runner(directory, limits, dtype=dtype, kernels=kernels, linear_kernel="compiled")
    compared = Compared(runner)
    run_in_process(runner, limits, [greedy(str(size), list(range(5, 5 + size)), 9) for size in (3, 20, 7)])
    assert compared.num_taken >= 8
