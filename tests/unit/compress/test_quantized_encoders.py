"""Encoders under `rayshard compress quantize`: what is written loads here and in transformers, near to the original."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from serve_app.checkpoints.encoder_spec import EncoderChoices, read_encoder_spec
from serve_app.cli.main import main
from serve_app.compress.quantize import QuantizeSettings, quantize
from serve_app.engine.encoder_loader import load_encoder_stage
from serve_app.errors import ConfigError
from serve_app.models.int8_linear import Int8Linear
from serve_app.models.quantization import QuantizedEmbedding
from serve_app.parallel.communicator import LoneCommunicator
from tests.encoder_checkpoints import ENCODERS, VOCAB_SIZE, make_encoder, reference_outputs
from tests.stage_group import CPU, settings_of

_SEEDED = torch.Generator().manual_seed(3)
TEXTS = [torch.randint(4, VOCAB_SIZE, (length,), generator=_SEEDED).tolist() for length in (5, 1, 30, 12)]
SCHEMES = {"int8": 0.99, "int8_weight_only": 0.999, "int4": 0.85, "fp8": 0.93, "power_of_two": 0.999}


def load(directory: Path, task: str) -> Any:
    return load_encoder_stage(settings_of(str(directory), task=task, max_model_len=40), LoneCommunicator(), CPU)


def outputs(stage: Any) -> Tensor:
    """Of each text [B, D]."""
    ids = torch.tensor([token for text in TEXTS for token in text])
    given = {"input_ids": ids, "lengths": torch.tensor([len(text) for text in TEXTS])}
    if "token_type_ids" in stage.inputs:
        given["token_type_ids"] = torch.zeros_like(ids)
    (found,) = stage.forward(given, None).values()
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_quantized_near_to_what_it_was(name: str, tmp_path: Path) -> None:
    source = make_encoder(name, tmp_path / "source", is_classifier=True)
    quantize(source, tmp_path / "small", QuantizeSettings("int8", has_embedding=True))
    small = load(tmp_path / "small", "classify")
    kinds = {type(module) for module in small.model.modules()}
    assert {Int8Linear, QuantizedEmbedding} <= kinds
    expected, found = outputs(load(source, "classify")), outputs(small)
    assert (found - expected).norm() < 0.15 * (expected - expected.mean(dim=0)).norm()
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_keeps_the_direction_of_embeddings(scheme: str, tmp_path: Path) -> None:
    source = make_encoder("bert", tmp_path / "source", is_classifier=False)
    quantize(source, tmp_path / "small", QuantizeSettings(scheme))
    cosines = cosine_similarity(outputs(load(source, "embed")), outputs(load(tmp_path / "small", "embed")))
    assert cosines.min() > SCHEMES[scheme]


@pytest.mark.parametrize(("name", "is_classifier"), [("bert", False), ("bert", True), ("roberta", True)])
@pytest.mark.parametrize("scheme", ["int8_weight_only", "fp8"])
def test_transformers_loads_it_and_gives_the_same(name: str, is_classifier: bool, scheme: str, tmp_path: Path) -> None:
    source = make_encoder(name, tmp_path / "source", is_classifier=is_classifier)
    quantize(source, tmp_path / "small", QuantizeSettings(scheme, has_embedding=True))
    types = [[0] * len(text) for text in TEXTS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference_outputs(tmp_path / "small", TEXTS, types, is_classifier=is_classifier, pooling="mean")
    found = outputs(load(tmp_path / "small", "classify" if is_classifier else "embed"))
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_pooling_and_projections_come_along(tmp_path: Path) -> None:
    source = make_encoder("bert", tmp_path / "source", is_classifier=False)
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    for path, kind in (("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("../outside", "Normalize")):
        modules.append({"type": f"sentence_transformers.models.{kind}", "path": path})
    (source / "modules.json").write_text(json.dumps(modules[:-1]))
    for path in ("1_Pooling", "2_Dense"):
        (source / path).mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    dense = {
        "in_features": 32,
        "out_features": 8,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    (source / "2_Dense" / "config.json").write_text(json.dumps(dense))
    save_file(
        {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}, source / "2_Dense/model.safetensors"
    )
    quantize(source, tmp_path / "small", QuantizeSettings("int8"))
    head = read_encoder_spec(EncoderChoices("embed"), tmp_path / "small").embedding
    assert head is not None
    assert ([step.modes for step in head.poolings], head.size) == ([("cls",)], 8)
    (source / "modules.json").write_text(json.dumps(modules))
    quantize(source, tmp_path / "again", QuantizeSettings("int8"))
    assert not (tmp_path / "outside").exists()


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    source = make_encoder("bert", tmp_path / "source", is_classifier=False)
    state = load_file(str(source / "model.safetensors"))
    state["embeddings.position_ids"] = torch.arange(64)[None]
    save_file(state, str(source / "model.safetensors"), metadata={"format": "pt"})
    quantize(source, tmp_path / "small", QuantizeSettings("int8"))
    assert torch.equal(
        load_file(str(tmp_path / "small" / "model.safetensors"))["embeddings.position_ids"], torch.arange(64)[None]
    )


def test_what_needs_a_generator_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_encoder("bert", tmp_path / "source", is_classifier=False)
    (tmp_path / "texts.txt").write_text("a text\n")
    command = ["compress", "quantize", str(source), str(tmp_path / "small"), "--scheme", "int4"]
    for option in ("--calibration", "--texts"):
        assert main([*command, option, str(tmp_path / "texts.txt")]) != 0
        assert f"{option} needs a model that generates" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"--head has no effect on .* no head over its vocabulary"):
        quantize(source, tmp_path / "small", QuantizeSettings("int8", has_head=True))
    assert not (tmp_path / "small").exists()
    assert main(command) == 0
    assert main(["compress", "inspect", str(tmp_path / "small")]) == 0
    assert "quantization: compressed-tensors" in capsys.readouterr().out
    evaluating = ["compress", "eval", str(tmp_path / "small"), "--original", str(source)]
    assert main([*evaluating, "--texts", str(tmp_path / "texts.txt")]) != 0
    assert "is an encoder; eval measures models that generate" in capsys.readouterr().err
