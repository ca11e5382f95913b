"""Quantized models: artifacts against plain transformers, in one piece and split; formats of others; while loading."""

import asyncio
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve_app.compress.artifact import WeightWriter
from serve_app.compress.local_model import LocalModel
from serve_app.compress.quantize import QuantizeSettings, quantize
from serve_app.models.quantized_weight import quantize_weight
from serve_app.types.shards import EngineLimits, LoadQuantization, WeightScheme
from tests.checkpoints import load_reference
from tests.plain_driver import Split, driven_copy, greedy
from tests.quantized_checkpoints import make_model, pack_awq, pack_gptq

SEQUENCES = [[5, 9, 17, 250, 3], [44], list(range(30, 71))]
BFLOAT16_ERROR = 0.02  # of a logit: what computing in bfloat16 does to these models
# How far we may be from transformers, in units of what rounding the inputs to 8 bits does to its own logits: ours have
# 7 bits where 8 would saturate, so twice that error, and the two are independent (sqrt(5) = 2.2). To float8 both round
# alike, but the last bit of a norm's sum can tip a number that lies between two: seen is 0.07, by one number of a row.
ROUNDED_INPUTS = {"int8": 3.0, "fp8": 0.2}
# A tensor shard rounds its part of a row by a scale of its own: finer than the whole row's, but another rounding, of
# two layers of seven.
ROUNDED_PARTS = 1.0
SCHEMES = ("int8", "int8_weight_only", "int4", "int3", "fp8", "power_of_two")
LIMITS = EngineLimits(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=64, block_size=16, num_blocks=16)
Artifact = Callable[[str, str, bool], Path]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A quantized checkpoint of an architecture, made once."""

    @cache
    def make(name: str, scheme: str, is_whole: bool) -> Path:
        source = make_model(name, tmp_path_factory.mktemp(name), hidden_size=64, intermediate_size=128)
        target = tmp_path_factory.mktemp(f"{name}-{scheme}") / "model"
        quantize(source, target, QuantizeSettings(scheme, has_embedding=is_whole, has_head=is_whole))
        return target

    return make


def reference_logits(directory: Path, *, has_rounded_inputs: bool = True) -> Tensor:
    """What transformers makes of the sequences, one at a time."""
    model = load_reference(directory)
    with torch.no_grad():
        model(torch.tensor([[1]]))  # the first call unpacks the weights
        for module in model.modules():
            if hasattr(module, "quantization_scheme"):
                module.quantization_enabled = has_rounded_inputs
        return torch.cat([model(torch.tensor([sequence])).logits[0] for sequence in SEQUENCES])


def tolerance_of(directory: Path, scheme: str, *, has_parts: bool = False) -> float:
    """How far from transformers' logits ours may be, or a tensor split's from those of the whole."""
    if scheme not in ROUNDED_INPUTS:
        return BFLOAT16_ERROR
    rounding = error_of(reference_logits(directory), reference_logits(directory, has_rounded_inputs=False))
    assert 0 < rounding < 0.2
    return max(ROUNDED_INPUTS[scheme], ROUNDED_PARTS if has_parts else 0) * rounding


def error_of(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("name", "is_whole"), [("llama", False), ("llama", True), ("llama_tied", True), ("qwen3", False)]
)
def test_an_artifact_gives_what_plain_transformers_gives(
    artifact: Artifact, name: str, scheme: str, is_whole: bool
) -> None:
    directory = artifact(name, scheme, is_whole)
    error = error_of(LocalModel(directory).logits(SEQUENCES), reference_logits(directory))
    assert error < tolerance_of(directory, scheme)


@pytest.mark.parametrize("scheme", ["int8", "int4", "int3", "fp8"])
@pytest.mark.parametrize(
    "split",
    [*(pytest.param(one, marks=pytest.mark.slow) for one in (Split(2, 1), Split(1, 2))), Split(2, 2)],
    ids=str,
)
async def test_a_split_artifact_gives_what_it_gives_whole(artifact: Artifact, scheme: str, split: Split) -> None:
    directory = artifact("llama", scheme, True)
    prompts = [sequence for sequence in SEQUENCES if len(sequence) > 1]
    logprobs = LocalModel(directory).logits(prompts).log_softmax(-1)
    async with driven_copy(directory, split, LIMITS) as copy:
        requests = [greedy(str(index), prompt, 1, with_prompt_logprobs=True) for index, prompt in enumerate(prompts)]
        outcomes = await asyncio.wait_for(copy.generate(requests), 60)
    start = 0
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        rows = logprobs[start : start + len(prompt) - 1]
        expected = rows.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        got = torch.tensor([entry.logprob for entry in outcome.prompt_logprobs])
        assert error_of(got, expected) < tolerance_of(directory, scheme, has_parts=split.tensor > 1)
        start += len(prompt)


@pytest.mark.parametrize(
    "name", ["llama", "llama_tied", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "opt", "gpt2"]
)
def test_quantizing_while_loading_gives_the_nearest_numbers(name: str, tmp_path: Path) -> None:
    directory = make_model(name, tmp_path / "model")
    scheme = WeightScheme(8, is_float=True)  # whose kernel on CPU computes in the model's dtype
    ours = LocalModel(directory, quantization=LoadQuantization(scheme)).logits(SEQUENCES)
    state = load_file(str(directory / "model.safetensors"))
    for key, tensor in state.items():
        is_projection = "embed" not in key and "lm_head" not in key and "wpe" not in key and "wte" not in key
        if tensor.dim() == 2 and is_projection and "project" not in key:
            is_conv = name == "gpt2"
            matrix = tensor.t() if is_conv else tensor
            rounded = quantize_weight(matrix, scheme).dequantized()
            state[key] = (rounded.t() if is_conv else rounded).contiguous()
    save_file(state, str(directory / "model.safetensors"), metadata={"format": "pt"})
    assert error_of(ours, LocalModel(directory).logits(SEQUENCES)) < 1e-5


@pytest.mark.parametrize("kind", ["gptq", "gptq in an order of its own", "awq"])
def test_checkpoints_of_other_tools_stay_packed_and_give_what_they_stand_for(kind: str, tmp_path: Path) -> None:
    source = make_model("llama", tmp_path / "source")
    target = tmp_path / "packed"
    directory = pack_awq(source, target) if kind == "awq" else pack_gptq(source, target, has_order="order" in kind)
    ours = LocalModel(directory, "float32")
    dense = LocalModel(directory / "dense", "float32")
    assert error_of(ours.logits(SEQUENCES), dense.logits(SEQUENCES)) < 1e-4
    assert ours.num_weight_bytes < dense.num_weight_bytes


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    source = make_model("llama", tmp_path / "source")
    for target in ("one", "two"):
        quantize(source, tmp_path / target, QuantizeSettings("int4", group_size=16, has_embedding=True))
    one, two = ((tmp_path / target / "model.safetensors").read_bytes() for target in ("one", "two"))
    assert one == two
    recipes = [(tmp_path / target / "recipe.yaml").read_text() for target in ("one", "two")]
    assert recipes[0] == recipes[1]


def test_an_artifact_of_several_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_model("llama", tmp_path / "source", max_shard_size="100KB")
    monkeypatch.setattr(WeightWriter.__init__, "__defaults__", (30_000,))
    quantize(source, tmp_path / "target", QuantizeSettings("int8"))
    assert len(list((tmp_path / "target").glob("model-*.safetensors"))) > 2
    index = json.loads((tmp_path / "target" / "model.safetensors.index.json").read_text())
    assert index["weight_map"]
    error = error_of(LocalModel(tmp_path / "target").logits(SEQUENCES), reference_logits(tmp_path / "target"))
    assert error < tolerance_of(tmp_path / "target", "int8")
