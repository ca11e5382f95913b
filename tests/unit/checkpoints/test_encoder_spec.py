"""What an encoder's files say, and which of them are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serve_app.checkpoints.encoder_spec import EncoderChoices, check_encoder, read_encoder_spec
from serve_app.errors import ConfigError
from tests.encoder_checkpoints import make_encoder

EMBED = EncoderChoices("embed")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder("bert", tmp_path_factory.mktemp("bert"), is_classifier=False)


@pytest.fixture
def modules(embedder: Path, tmp_path: Path) -> Path:
    """A directory with the checkpoint, to write modules.json into."""
    for path in embedder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def write_modules(directory: Path, *modules: tuple[str, dict[str, Any] | None]) -> None:
    entries = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    for index, (kind, config) in enumerate(modules, 1):
        name = f"{index}_{kind}"
        entries.append({"path": name, "type": f"sentence_transformers.models.{kind}"})
        (directory / name).mkdir()
        if config is not None:
            (directory / name / "config.json").write_text(json.dumps(config))
    (directory / "modules.json").write_text(json.dumps(entries))


def test_a_plain_encoder_is_pooled_by_the_mean_and_not_normalised(embedder: Path) -> None:
    spec = read_encoder_spec(EMBED, embedder)
    assert (spec.pooling, spec.is_normalized, spec.embedding_size, spec.max_tokens) == ("mean", False, 32, 64)
    assert spec.has_token_types


def test_the_yaml_goes_before_the_files(modules: Path) -> None:
    write_modules(modules, ("Pooling", {"pooling_mode_mean_tokens": True}), ("Normalize", None))
    spec = read_encoder_spec(EncoderChoices("embed", pooling="cls", normalize=False, max_model_len=7), modules)
    assert (spec.pooling, spec.is_normalized, spec.max_tokens) == ("cls", False, 7)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_sentence_transformers_modules_are_followed(modules: Path, config: dict[str, Any], pooling: str) -> None:
    write_modules(modules, ("Pooling", config), ("Normalize", None))
    (modules / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    spec = read_encoder_spec(EMBED, modules)
    assert (spec.pooling, spec.is_normalized, spec.max_tokens) == (pooling, True, 20)


def test_a_projection_changes_the_embeddings_size(modules: Path) -> None:
    dense = {"activation_function": "torch.nn.modules.activation.Tanh"}
    write_modules(modules, ("Pooling", {"pooling_mode_mean_tokens": True}), ("Dense", dense))
    save_file({"linear.weight": torch.zeros(5, 32)}, str(modules / "2_Dense" / "model.safetensors"))
    spec = read_encoder_spec(EMBED, modules)
    (projection,) = spec.projections
    assert (spec.embedding_size, projection.activation, projection.has_bias) == (5, "tanh", False)


@pytest.mark.parametrize(
    ("modules_given", "message"),
    [
        ([("Pooling", {"pooling_mode_max_tokens": True})], "pooling 'max' is not served; set pooling in the YAML"),
        ([("Pooling", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True})], "is not served"),
        ([("WordWeights", {})], "names a module 'WordWeights', which is not served"),
        ([("Dense", {"activation_function": "torch.nn.GELU"})], "activation_function='GELU' is not served"),
        ([("Dense", {"activation_function": "torch.nn.Tanh"})], "has no model.safetensors"),
    ],
)
def test_modules_that_are_not_served_are_named(
    modules: Path, modules_given: list[tuple[str, dict[str, Any]]], message: str
) -> None:
    write_modules(modules, *modules_given)
    with pytest.raises(ConfigError, match=message):
        read_encoder_spec(EMBED, modules)


def test_labels_and_kinds_of_classifiers_are_read(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"problem_type": "multi_label_classification", "id2label": {0: "a", 1: "b", 2: "c"}}
    directory = make_encoder("roberta", tmp_path, is_classifier=True, **changes)
    spec = read_encoder_spec(EncoderChoices("classify"), directory)
    assert (spec.labels, spec.is_multi_label, spec.num_labels, spec.max_tokens) == (("a", "b", "c"), True, 3, 62)
    single = read_encoder_spec(EncoderChoices("classify", is_multi_label=False), directory)
    assert not single.is_multi_label
    with pytest.raises(ConfigError, match="task=score needs a cross-encoder with one output"):
        read_encoder_spec(EncoderChoices("score"), directory)


@pytest.mark.parametrize(("name", "expected"), [(None, "sigmoid"), ("torch.nn.modules.linear.Identity", "identity")])
def test_a_cross_encoder_says_how_its_scores_are_shown(tmp_path: Path, name: str | None, expected: str) -> None:
    changes: dict[str, Any] = {} if name is None else {"sentence_transformers": {"activation_fn": name}}
    directory = make_encoder("bert", tmp_path, is_classifier=True, num_labels=1, **changes)
    assert read_encoder_spec(EncoderChoices("score"), directory).score_activation == expected


def test_a_task_without_its_head_and_a_split_that_cannot_be_are_refused(embedder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task=classify needs a classifier"):
        read_encoder_spec(EncoderChoices("classify"), embedder)
    spec = read_encoder_spec(EMBED, embedder)
    assert check_encoder(spec, 2, None) == []
    assert "does not divide num_heads=4" in check_encoder(spec, 3, None)[0]
    assert "max_model_len=65 is above the 64 positions" in check_encoder(spec, 1, 65)[0]
    distilbert = read_encoder_spec(EMBED, make_encoder("distilbert", tmp_path, is_classifier=False))
    assert "cannot cut model_type=distilbert; use parallel.pipeline" in check_encoder(distilbert, 2, None)[0]


def test_another_kind_of_model_is_refused_with_those_that_can_be_served(embedder: Path, tmp_path: Path) -> None:
    config = json.loads((embedder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "squeezebert"}))
    (tmp_path / "model.safetensors").symlink_to(embedder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"'squeezebert' in config\.json is not supported; use a model of type bert"):
        read_encoder_spec(EMBED, tmp_path)
