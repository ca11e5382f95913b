"""Fused layers against the layers of transformers whose place they take, run by the same engine."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from serve_app.compress.local_model import LocalModel
from serve_app.models import transformers_model
from serve_app.models.fused_decoder import FusedDecoderLayer, RotaryTables
from serve_app.models.transformers_model import TransformersStage, read_config
from serve_app.types.shards import LoadQuantization, ShardSpec, WeightScheme
from tests.quantized_checkpoints import make_model

# The last one is longer than a window, and as many numbers as go through torch rather than numpy.
SEQUENCES = [[5, 9, 17, 250, 3], [44], list(range(30, 71)), [(7 * place) % 300 for place in range(1500)]]
FAST = (("llama", "float32"), ("qwen3", "bfloat16"))  # the others are slow tests
INT8 = LoadQuantization(WeightScheme(8, has_quantized_inputs=True), has_embedding=True, has_head=True)


def outputs_of(directory: Path, dtype: str, quantization: LoadQuantization | None) -> tuple[Tensor, list[list[int]]]:
    """Logits of the sequences, and what follows them: each alone, and all in one batch."""
    model = LocalModel(directory, dtype, quantization)
    alone = [model.generate([sequence], 12, ignore_eos=True)[0] for sequence in SEQUENCES[:3]]
    return model.logits(SEQUENCES), [*alone, *model.generate(SEQUENCES, 12, ignore_eos=True)]


@pytest.mark.parametrize(
    ("name", "dtype", "quantization"),
    [
        pytest.param(name, dtype, quantization, marks=[] if (name, dtype) in FAST else pytest.mark.slow)
        for name in ("llama", "mistral", "qwen2", "qwen3")
        for dtype in ("float32", "bfloat16")
        for quantization in (None, INT8)
    ],
)
def test_the_numbers_are_equal_to_the_bit(
    name: str, dtype: str, quantization: LoadQuantization | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_model(name, tmp_path / name, max_position_embeddings=2048)
    logits, tokens = outputs_of(directory, dtype, quantization)
    monkeypatch.setattr(transformers_model, "fuse_layers", lambda _model, _classes: False)
    expected_logits, expected_tokens = outputs_of(directory, dtype, quantization)
    assert torch.equal(logits, expected_logits)
    assert tokens == expected_tokens


@pytest.mark.parametrize(("name", "is_fused"), [("llama", True), ("gemma2", False), ("mixtral", False)])
def test_layers_of_another_shape_stay_what_they_are(name: str, is_fused: bool, tmp_path: Path) -> None:
    stage = TransformersStage(
        read_config(make_model(name, tmp_path)), torch.float32, ShardSpec(0, 1, 0, 1, first_layer=0, end_layer=4)
    )
    assert [isinstance(layer, FusedDecoderLayer) for layer in stage.own_layers] == [is_fused] * 4


def test_another_activation_is_not_taken_for_silu(tmp_path: Path) -> None:
    config = read_config(make_model("llama", tmp_path, hidden_act="gelu"))
    stage = TransformersStage(config, torch.float32, ShardSpec(0, 1, 0, 1, first_layer=0, end_layer=4))
    assert not any(isinstance(layer, FusedDecoderLayer) for layer in stage.own_layers)


def test_few_and_many_numbers_are_rotated_alike() -> None:
    torch.manual_seed(0)
    angles = torch.randn(1, 600, 32)
    heads = torch.randn(600, 6, 64)
    cos, sin = (function(torch.cat((angles, angles), dim=-1)) for function in (torch.cos, torch.sin))
    many = RotaryTables(cos, sin).rotated(heads)
    few = [RotaryTables(cos[:, i : i + 1], sin[:, i : i + 1]).rotated(heads[i : i + 1]) for i in range(600)]
    assert torch.equal(torch.cat(few), many)
