"""Which backend is taken, and what is said of those that are not."""

from dataclasses import replace

import pytest
import torch

from serve_app.architectures.head_sizes import HeadSizes
from serve_app.engine.attention.choice import DecodeSizes, choose_attention, missing_of
from serve_app.engine.attention.padded import PaddedBackend
from serve_app.errors import ConfigError
from serve_app.planning.attention_problem import attention_problem

SIZES = DecodeSizes(block_size=16, max_model_len=1024, max_num_seqs=8)
HEADS = HeadSizes(8, 2, 64, 64)
CPU = torch.device("cpu")


def test_auto_on_cpu_reads_each_sequence_in_place() -> None:
    choice = choose_attention("auto", (HEADS,), SIZES, torch.float32, CPU)
    assert (choice.name, choice.backend, str(choice)) == ("reference", None, "reference")


def test_padded_is_had_everywhere() -> None:
    choice = choose_attention("padded", (HEADS,), SIZES, torch.bfloat16, CPU)
    assert choice.name == "padded"
    assert isinstance(choice.backend, PaddedBackend)


@pytest.mark.parametrize("name", ["triton", "varlen"])
def test_a_kernel_of_a_gpu_is_refused_on_cpu(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"engine.attention={name} is for device.type=cuda; use reference or padded"):
        choose_attention(name, (HEADS,), SIZES, torch.float32, CPU)


def test_auto_on_cuda_says_why_faster_ones_are_not_taken() -> None:
    wide = replace(HEADS, head_dim=512, value_dim=512)
    choice = choose_attention("auto", (wide,), SIZES, torch.float32, torch.device("cuda"))
    assert choice.name == "padded"
    assert str(choice) == (
        "padded (engine.attention=triton serves heads of at most 256, not 512; use padded; "
        "engine.attention=varlen serves float16 and bfloat16, not float32; use triton)"
    )


@pytest.mark.parametrize("name", ["triton", "varlen"])
def test_a_backend_has_to_serve_every_kind_of_layers(name: str) -> None:
    kinds, sizes = (HeadSizes(32, 16, 256, 256), HeadSizes(32, 4, 512, 512)), replace(SIZES, block_size=256)
    assert attention_problem(name, "cuda", "bfloat16", kinds[:1], 256) is None
    problem = attention_problem(name, "cuda", "bfloat16", kinds, 256)
    assert problem is not None
    assert "not 512" in problem
    cuda = torch.device("cuda")
    assert choose_attention("auto", kinds, sizes, torch.bfloat16, cuda).name == "padded"
    with pytest.raises(ConfigError, match="not 512"):
        choose_attention(name, kinds, sizes, torch.bfloat16, cuda)


@pytest.mark.parametrize(
    ("dtype", "heads", "block_size", "problem"),
    [
        ("bfloat16", HEADS, 512, None),
        ("float32", HEADS, 256, "serves float16 and bfloat16, not float32"),
        ("bfloat16", replace(HEADS, value_dim=32), 256, "serves keys and values of one width"),
        ("bfloat16", replace(HEADS, head_dim=60, value_dim=60), 256, "a multiple of 8 up to 256, not 60 and 60"),
        ("bfloat16", HEADS, 16, "engine.block_size=16 is no multiple of it; set block_size: 256"),
    ],
)
def test_what_torch_s_paged_kernel_does_not_serve(
    dtype: str, heads: HeadSizes, block_size: int, problem: str | None
) -> None:
    found = attention_problem("varlen", "cuda", dtype, (heads,), block_size)
    assert found is None if problem is None else problem in str(found)


@pytest.mark.parametrize(
    ("name", "torch_version", "has_triton", "problem"),
    [
        ("padded", "2.6.0", False, None),
        ("triton", "2.11.0+cu130", True, None),
        ("triton", "2.11.0+cu130", False, "needs the package triton, which is not installed"),
        ("varlen", "2.13.0", False, None),
        ("varlen", "2.11.0+cu130", True, "needs torch 2.13, and this is 2.11.0"),
    ],
)
def test_what_an_installation_lacks(name: str, torch_version: str, has_triton: bool, problem: str | None) -> None:
    found = missing_of(name, torch_version, has_triton=has_triton)
    assert found is None if problem is None else problem in str(found)
