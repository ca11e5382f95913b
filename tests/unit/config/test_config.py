"""The settings of our applications: defaults, names, and the environment."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from serve_app.config.engine import DEFAULT_CPU_KV_CACHE_BYTES
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig


def test_defaults_suit_a_laptop() -> None:
    model = ModelConfig(name="a", source="b")
    assert model.kv_cache_bytes == DEFAULT_CPU_KV_CACHE_BYTES
    assert 5 * model.device.cpus_per_shard < 1
    assert model.max_ongoing_requests == 64 + 1024


@pytest.mark.parametrize("name", ["chat", "org/name-7b", "a", "x" * 64])
def test_plain_names_are_allowed(name: str) -> None:
    assert ModelConfig(name=name, source="b").name == name


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b/c", "../a", "a\n", "x" * 65, "ü"])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="cannot be a model's name; use at most 64 letters"):
        ModelConfig(name=name, source="b")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        ModelConfig(name="a", source="b").name = "c"


def test_the_environment_follows_the_hub_variables() -> None:
    empty = read_environment({})
    assert empty.hub_cache_dir == Path("~/.cache/huggingface/hub").expanduser()
    assert not empty.is_hub_offline
    assert empty.hub_endpoint is None
    given = read_environment({"HF_HOME": "/hf", "TRANSFORMERS_OFFLINE": "1", "HF_ENDPOINT": "http://localhost"})
    assert (given.hub_cache_dir, given.is_hub_offline) == (Path("/hf/hub"), True)
    assert given.hub_endpoint == "http://localhost"
    assert read_environment({"RAYSHARD_SHARD_SERVER": "/tmp/shards"}).shard_server == "/tmp/shards"
    assert empty.shard_server is None
