"""A stage whose linear layers are packed answers as it did."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from serve_app.engine.loader import LoadedStage, load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.models.linear_kernels import FloatLinear, keeps_weight, why_no_kernel
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.types.shards import EngineLimits
from tests.checkpoints import ARCHITECTURES, make_checkpoint
from tests.compiled import kernels_or_skip
from tests.plain_driver import WHOLE, greedy, run_in_process

LIMITS = EngineLimits(max_num_seqs=4, max_num_batched_tokens=32, max_model_len=64, block_size=4, num_blocks=64)
PROMPT = [5, 9, 2, 7, 11, 3]
HALF_KERNELS = [  # that this CPU has
    (kernel, dtype)
    for kernel in ("gemv", "onednn", "fbgemm")
    for dtype in ("bfloat16", "float16")
    if why_no_kernel(kernel, getattr(torch, dtype)) is None
] + [("compiled", "bfloat16")]


def load(directory: Path, kernel: str | None, dtype: str = "float32") -> LoadedStage:
    compiled = kernels_or_skip() if kernel == "compiled" else None
    return load_stage(
        directory, dtype, WHOLE, LoneCommunicator(), torch.device("cpu"), linear_kernel=kernel, compiled=compiled
    )


def answer(loaded: LoadedStage) -> tuple[Tensor, list[int]]:
    """The log-probabilities of a prompt's tokens, and the tokens that follow."""
    runner = ModelRunner(loaded.stage, LIMITS, LoneCommunicator(), torch.device("cpu"))
    [outcome] = run_in_process(runner, LIMITS, [greedy("a", PROMPT, 8, with_prompt_logprobs=True)])
    return torch.tensor([one.logprob for one in outcome.prompt_logprobs]), outcome.token_ids


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kernel", ["torch", "onednn", "compiled"])
def test_every_architecture_answers_as_with_nn_linear(tmp_path: Path, name: str, kernel: str) -> None:
    directory = make_checkpoint(name, tmp_path)
    packed = load(directory, kernel)
    assert any(isinstance(module, FloatLinear) for module in packed.stage.model.modules()) or name == "gpt2"
    logprobs, token_ids = answer(packed)
    expected = answer(load(directory, None))
    assert torch.allclose(logprobs, expected[0], atol=1e-4)
    assert token_ids == expected[1]


@pytest.mark.parametrize(("kernel", "dtype"), HALF_KERNELS)
def test_half_precision_is_as_near_to_float32_as_with_nn_linear(tmp_path: Path, kernel: str, dtype: str) -> None:
    directory = make_checkpoint("llama", tmp_path)
    exact, packed, plain = (answer(load(directory, *how))[0] for how in ((None,), (kernel, dtype), (None, dtype)))
    assert (packed - exact).abs().max() <= 2 * (plain - exact).abs().max()


@pytest.mark.parametrize("kernel", ["torch", "onednn", "compiled"])
def test_a_tied_head_shares_the_embedding_where_the_kernel_lets_it(tmp_path: Path, kernel: str) -> None:
    directory = make_checkpoint("llama_tied", tmp_path)
    plain, packed = load(directory, None), load(directory, kernel)
    embedding = packed.stage.model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    copied = 0 if keeps_weight(kernel) else embedding.weight.nbytes
    assert packed.parameter_bytes == plain.parameter_bytes + copied
    assert not isinstance(packed.stage.model.get_output_embeddings(), nn.Linear)
