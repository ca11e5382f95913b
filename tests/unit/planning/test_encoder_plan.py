"""What callers are told of an encoder, from its files and its Serve file."""

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.environment import Environment
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.planning.served_model import BatchModelPlan, plan_batch_model
from serve_app.types.models import ModelDescription
from serve_app.types.shards import BatchModelReport
from serve_app.types.tensors import TensorSpec
from tests.encoder_checkpoints import make_encoder


@pytest.fixture
def prompted(tmp_path: Path) -> Path:
    """A model of sentence-transformers, whose transformer has a directory of its own."""
    make_encoder("bert", tmp_path / "0_Transformer")
    modules = [("Transformer", "0_Transformer"), ("Pooling", "1_Pooling")]
    entries = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in modules]
    write_json(tmp_path / "modules.json", entries)
    (tmp_path / "1_Pooling").mkdir()
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "cls"})
    values = {"prompts": {"query": "q: ", "document": "d: "}, "default_prompt_name": "query"}
    write_json(tmp_path / "config_sentence_transformers.json", values)
    return tmp_path


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def plan(source: Path, **settings: Any) -> BatchModelPlan:
    config = ModelConfig.model_validate({"name": "m", "source": str(source), "task": "embed", **settings})
    environment = Environment(
        source / "hub",
        is_hub_offline=True,
        hub_endpoint=None,
        weights_cache_dir=source / "w",
        kernel_times_file=source / "k",
        compiled_dir=source / "c",
    )
    return plan_batch_model(config, source, environment)


def described(source: Path, **settings: Any) -> ModelDescription:
    output = {"embedding": TensorSpec("float32", ("batch", 32))}
    return plan(source, **settings).describe(BatchModelReport("m", 0, 0, 4, {}, output), 0)


def test_prompts_and_the_tokenizers_directory_are_told(prompted: Path) -> None:
    description = described(prompted)
    assert description.source_dir == str(prompted / "0_Transformer")
    assert (description.prompts, description.default_prompt_name) == ({"query": "q: ", "document": "d: "}, "query")
    assert described(prompted, default_prompt_name="document").default_prompt_name == "document"
    assert described(prompted, default_prompt_name="").default_prompt_name is None


def test_a_chain_that_leaves_no_text_does_not_go_with_a_prompt(prompted: Path) -> None:
    with pytest.raises(ConfigError, match="tokenize leaves no text to put the prompt 'query' before"):
        plan(prompted, preprocessing=["tokenize"])
    assert plan(prompted, preprocessing=["tokenize"], default_prompt_name="").problems == []


def test_a_chain_that_leaves_no_text_does_not_go_with_pairs(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path, is_classifier=True, num_labels=1)
    with pytest.raises(ConfigError, match="task=score takes pairs"):
        plan(tmp_path, task="score", preprocessing=["tokenize"])


def test_a_regression_is_told_as_such(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path, is_classifier=True, num_labels=1, problem_type="regression")
    assert described(tmp_path, task="classify").score_activation == "identity"
    assert described(tmp_path, task="score").score_activation == "identity"


def test_a_default_prompt_is_for_embedders_and_cross_encoders(prompted: Path) -> None:
    with pytest.raises(ValueError, match="default_prompt_name has no effect on task=classify; remove it"):
        plan(prompted, task="classify", default_prompt_name="query")
