"""A whole model whose kernels are compiled: what it draws depends on no batch-mate, and little on the kernels."""

from pathlib import Path

import pytest

from serve_app.models.fused_decoder import FusedMLP
from serve_app.models.fused_norm import CompiledRMSNorm
from serve_app.types.shards import EngineLimits, LoadQuantization, WeightScheme
from tests.compiled import int8_kernels_or_skip
from tests.plain_driver import greedy, load_runner, run_in_process
from tests.quantized_checkpoints import make_model

INT8 = LoadQuantization(WeightScheme(8, has_quantized_inputs=True), has_embedding=True, has_head=True)
LIMITS = EngineLimits(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=64, block_size=4, num_blocks=64)
PROMPTS = [[5, 9, 17, 250, 3], [44], list(range(30, 50)), [7, 7, 9]]


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sequence_of_int8_is_continued_alone_as_beside_others(name: str, dtype: str, tmp_path: Path) -> None:
    kernels = int8_kernels_or_skip()
    directory = make_model(name, tmp_path / name, max_position_embeddings=2048)
    runner = load_runner(directory, LIMITS, dtype=dtype, quantization=INT8, kernels=kernels)
    requests = [greedy(str(index), prompt, 20) for index, prompt in enumerate(PROMPTS)]
    together = [outcome.token_ids for outcome in run_in_process(runner, LIMITS, requests)]
    alone = [run_in_process(runner, LIMITS, [request])[0].token_ids for request in requests]
    assert alone == together
    eager = load_runner(directory, LIMITS, dtype=dtype, quantization=INT8)
    expected = [outcome.token_ids for outcome in run_in_process(eager, LIMITS, requests)]
    equal = sum(one[:3] == other[:3] for one, other in zip(together, expected, strict=True))
    assert equal >= len(PROMPTS) - 1  # a last bit may tip a near tie


def test_norms_and_gates_are_replaced(tmp_path: Path) -> None:
    kernels = int8_kernels_or_skip()
    directory = make_model("llama", tmp_path / "llama", max_position_embeddings=64)
    modules = list(load_runner(directory, LIMITS, kernels=kernels)._stage.model.modules())
    assert sum(isinstance(one, CompiledRMSNorm) for one in modules) == 9
    assert all(one.kernels is kernels for one in modules if isinstance(one, FusedMLP))
