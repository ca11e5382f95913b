"""All layers in one call against the layers' own forwards over the same cache."""

import os
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from serve_app.engine.attention.compiled import CompiledBackend
from serve_app.engine.model_runner import ModelRunner
from serve_app.models.compiled.decoder import CompiledDecoder, compiled_decoder
from serve_app.models.compiled.library import CompiledKernels
from serve_app.models.fused_decoder import FusedMLP
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.types.shards import EngineLimits, LoadQuantization, WeightScheme
from tests.compared_stage import Compared
from tests.compiled import int8_kernels_or_skip, kernels_or_skip
from tests.plain_driver import greedy, load_runner, run_in_process
from tests.quantized_checkpoints import make_model

INT8 = LoadQuantization(WeightScheme(8, has_quantized_inputs=True), has_embedding=True, has_head=True)
LIMITS = EngineLimits(max_num_seqs=9, max_num_batched_tokens=128, max_model_len=96, block_size=4, num_blocks=256)
PROMPTS = [[5, 9, 17, 250, 3], [44], list(range(30, 70)), *([7 + index, 7, 9] for index in range(6))]
FAST = (("llama", "float32", None), ("qwen3", "bfloat16", INT8))  # the others are slow tests


@pytest.mark.parametrize(
    ("name", "dtype", "quantization"),
    [
        pytest.param(name, dtype, how, marks=[] if (name, dtype, how) in FAST else pytest.mark.slow)
        for name in ("llama", "mistral", "qwen2", "qwen3")
        for dtype in ("float32", "bfloat16")
        for how in (None, INT8)
    ],
)
def test_logits_and_caches_are_equal_to_the_bit(
    name: str, dtype: str, quantization: LoadQuantization | None, tmp_path: Path
) -> None:
    kernels = kernels_or_skip() if quantization is None else int8_kernels_or_skip()
    changes = {"sliding_window": 9} if name == "mistral" else {}
    directory = make_model(name, tmp_path / name, max_position_embeddings=256, **changes)
    runner = load_runner(
        directory, LIMITS, dtype=dtype, quantization=quantization, kernels=kernels, linear_kernel="compiled"
    )
    runner._stage.keep_angles(20)  # those behind them are computed in each step
    compared = Compared(runner)
    requests = [greedy(str(index), prompt, 8 + 2 * index) for index, prompt in enumerate(PROMPTS)]
    run_in_process(runner, LIMITS, requests)
    run_in_process(runner, LIMITS, [greedy("alone", PROMPTS[2], 12)])
    assert compared.num_taken >= 20


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_widths_of_heads_that_kernels_know(head_dim: int, tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "head_dim": head_dim, "num_attention_heads": 6, "num_key_value_heads": 2}
    directory = make_model("llama", tmp_path, max_position_embeddings=256, **sizes)
    runner = load_runner(directory, LIMITS, kernels=kernels_or_skip(), linear_kernel="compiled")
    compared = Compared(runner)
    run_in_process(runner, LIMITS, [greedy(str(index), prompt, 9) for index, prompt in enumerate(PROMPTS)])
    assert compared.num_taken >= 8


def test_more_threads_than_cores(tmp_path: Path) -> None:
    directory = make_model("llama", tmp_path, max_position_embeddings=256)
    runner = load_runner(directory, LIMITS, kernels=kernels_or_skip(), linear_kernel="compiled")
    compared = Compared(runner)
    before = torch.get_num_threads()
    torch.set_num_threads(2 * (os.cpu_count() or 1) + 1)  # some are off their cores at any time
    try:
        run_in_process(runner, LIMITS, [greedy(str(index), prompt, 30) for index, prompt in enumerate(PROMPTS)])
    finally:
        torch.set_num_threads(before)
    assert compared.num_taken >= 29


def test_a_token_of_a_prompt_that_wants_no_logits(tmp_path: Path) -> None:
    limits = replace(LIMITS, max_num_batched_tokens=1)
    directory = make_model("llama", tmp_path, max_position_embeddings=256)
    runner = load_runner(directory, limits, kernels=kernels_or_skip(), linear_kernel="compiled")
    compared = Compared(runner)
    run_in_process(runner, limits, [greedy("0", PROMPTS[2], 3)])
    assert compared.num_taken == len(PROMPTS[2]) - 1 + 2


@pytest.fixture
def kernels() -> CompiledKernels:
    return kernels_or_skip()


def decoder_of(runner: ModelRunner) -> CompiledDecoder | None:
    return runner._stage._decoder


def test_products_of_a_library_leave_the_layers_their_own_forwards(tmp_path: Path, kernels: CompiledKernels) -> None:
    directory = make_model("llama", tmp_path, max_position_embeddings=64)
    assert decoder_of(load_runner(directory, LIMITS, kernels=kernels, linear_kernel="onednn")) is None
    assert decoder_of(load_runner(directory, LIMITS, kernels=kernels, linear_kernel="compiled")) is not None


def test_another_backend_attends_where_it_is_asked_for(tmp_path: Path, kernels: CompiledKernels) -> None:
    directory = make_model("llama", tmp_path, max_position_embeddings=64)
    tokens = []
    for attention in ("auto", "padded"):
        runner = load_runner(directory, LIMITS, kernels=kernels, linear_kernel="compiled", attention=attention)
        calls = _counted_calls(runner)
        tokens.append(run_in_process(runner, LIMITS, [greedy("0", PROMPTS[0], 6)])[0].token_ids)
        assert (len(calls) == 1) == (attention == "auto")  # the prompt's step goes through the layers
    assert tokens[0] == tokens[1]


def _counted_calls(runner: ModelRunner) -> list[object]:
    """What the first layer's MLP has been called with."""
    calls: list[object] = []
    mlp = next(one for one in runner._stage.model.modules() if isinstance(one, FusedMLP))
    mlp.register_forward_pre_hook(lambda _module, args: calls.append(args))
    return calls


def test_a_layer_whose_output_is_summed_over_ranks_is_refused(tmp_path: Path, kernels: CompiledKernels) -> None:
    directory = make_model("llama", tmp_path, max_position_embeddings=64)
    stage = load_runner(directory, LIMITS, kernels=kernels, linear_kernel="compiled")._stage
    assert isinstance(compiled_decoder(stage.own_layers, kernels, torch.float32), CompiledDecoder)
    mlp = next(one for one in stage.model.modules() if isinstance(one, FusedMLP))
    mlp.down_proj.register_forward_hook(lambda _module, _args, output: output)
    assert "is not a product alone" in str(compiled_decoder(stage.own_layers, kernels, torch.float32))


def test_a_new_cache_is_taken_and_the_old_one_is_not_held(tmp_path: Path, kernels: CompiledKernels) -> None:
    directory = make_model("llama", tmp_path, max_position_embeddings=64)
    runner = load_runner(directory, LIMITS, kernels=kernels, linear_kernel="compiled")
    request = greedy("0", PROMPTS[0], 6)
    expected = run_in_process(runner, LIMITS, [request])[0].token_ids
    old = weakref.ref(runner._cache.keys[0])
    backend = CompiledBackend(LIMITS.block_size, kernels)
    runner = ModelRunner(runner._stage, LIMITS, LoneCommunicator(), torch.device("cpu"), backend)
    assert old() is None
    assert run_in_process(runner, LIMITS, [request])[0].token_ids == expected
