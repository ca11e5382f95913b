"""A hub repository planned from: its texts and the headers of its weights, and no weight is read."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.checkpoints.header_files import directory_with_headers
from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.config.environment import Environment, read_environment
from serve_app.errors import ConfigError
from tests.fake_hub import COMMIT, FakeHub, serve_hub
from tests.published_models import write_headers

SHAPES = {
    "model.embed_tokens.weight": (64, 16),
    "model.layers.0.mlp.up_proj.weight": (3000, 1600),
    "lm_head.weight": (64, 16),
}
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "hidden_size": 16,
    "intermediate_size": 32,
    "vocab_size": 64,
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve_hub({}) as server:
        yield server


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path) -> Environment:
    return replace(
        read_environment({}),
        hub_cache_dir=tmp_path / "hub",
        hub_endpoint=hub.endpoint,
        weights_cache_dir=tmp_path / "cache" / "weights",
    )


def weights(tmp_path: Path, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    write_headers(tmp_path / "file", shapes)
    return (tmp_path / "file").read_bytes()


def test_sizes_are_those_of_the_repository_and_only_headers_are_asked_for(
    hub: FakeHub, environment: Environment, tmp_path: Path
) -> None:
    content = weights(tmp_path, SHAPES)
    hub.files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": content}
    directory = directory_with_headers("org/model", None, environment)
    spec = read_model_spec(directory)
    assert {name: one.shape for name, one in spec.tensors.items()} == SHAPES
    assert spec.num_bytes == 2 * (2 * 64 * 16 + 3000 * 1600)
    assert (directory / "model.safetensors").stat().st_blocks * 512 < 100_000  # the rest is a hole
    (sent,) = [size for path, size in hub.sent if path.endswith("model.safetensors")]
    assert sent < 0.02 * len(content)
    hub.sent.clear()
    assert directory_with_headers("org/model", COMMIT, environment) == directory
    assert not [path for path, _ in hub.sent if path.endswith(".safetensors")]  # they are kept


def test_a_header_longer_than_a_first_look_is_read_whole(
    hub: FakeHub, environment: Environment, tmp_path: Path
) -> None:
    many = {f"model.layers.0.mlp.experts.{index}.up_proj.weight": (4, 4) for index in range(2000)}
    first, second = SHAPES | {}, many
    hub.files = {
        "config.json": json.dumps(CONFIG).encode(),
        "a.safetensors": weights(tmp_path, first),
        "b.safetensors": weights(tmp_path, second),
    }
    index = {"weight_map": dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")}
    hub.files["model.safetensors.index.json"] = json.dumps(index).encode()
    spec = read_model_spec(directory_with_headers("org/model", None, environment))
    assert spec.tensors.keys() == first.keys() | second.keys()


def test_a_repository_without_safetensors_is_refused(hub: FakeHub, environment: Environment) -> None:
    hub.files = {"config.json": json.dumps(CONFIG).encode(), "pytorch_model.bin": b"pickle"}
    with pytest.raises(ConfigError, match=re.escape("source=org/model has no model.safetensors; give a model with")):
        directory_with_headers("org/model", None, environment)


def test_a_file_that_is_no_safetensors_file_is_refused(hub: FakeHub, environment: Environment) -> None:
    hub.files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"weights of another kind"}
    with pytest.raises(ConfigError, match=r"source=org/model: model.safetensors has no header that can be read"):
        directory_with_headers("org/model", None, environment)
