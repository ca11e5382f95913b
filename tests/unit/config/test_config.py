"""The settings of our applications: defaults, names, and the environment."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.config.engine import DEFAULT_CPU_KV_CACHE_BYTES
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.config.model_set import ModelSetConfig


def test_defaults_suit_a_laptop() -> None:
    model = ModelConfig(name="a", source="b")
    assert model.kv_cache_bytes == DEFAULT_CPU_KV_CACHE_BYTES
    assert 5 * model.device.cpus_per_shard < 1
    assert model.max_ongoing_requests == 64 + 1024


@pytest.mark.parametrize(
    ("device", "engine", "expected"),
    [
        ("cpu", {}, 512),
        ("cpu", {"max_num_batched_tokens": 256}, 256),
        ("cpu", {"max_num_prefill_tokens": 2048}, 2048),
        ("cuda", {}, 2048),
        ("cuda", {"max_num_batched_tokens": 8192}, 8192),
        ("cuda", {"max_num_prefill_tokens": 1024}, 1024),
    ],
)
def test_prompts_have_a_share_of_a_step_that_suits_the_device(
    device: str, engine: dict[str, int], expected: int
) -> None:
    model = ModelConfig.model_validate({"name": "a", "source": "b", "device": {"type": device}, "engine": engine})
    assert model.max_num_prefill_tokens == expected


@pytest.mark.parametrize("name", ["chat", "org/name-7b", "a", "x" * 64])
def test_plain_names_are_allowed(name: str) -> None:
    assert ModelConfig(name=name, source="b").name == name


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b/c", "../a", "a\n", "x" * 65, "ü"])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="cannot be a model's name; use at most 64 letters"):
        ModelConfig(name=name, source="b")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"standby_shards": 1, "device": {"type": "cuda"}}, "standby_shards=1 is for device.type=cpu: a process that"),
        ({"standby_shards": 2}, "standby_shards=2 is more than the copy's 1 shard; use at most 1"),
        ({"standby_shards": 3, "parallel": {"pipeline": 2}}, "is more than the copy's 2 shards; use at most 2"),
        ({"standby_shards": -1}, "greater than or equal to 0"),
    ],
)
def test_processes_that_cannot_stand_by_are_refused(args: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        ModelConfig.model_validate({"name": "a", "source": "b", **args})
    if "parallel" not in args:
        with pytest.raises(ValidationError, match=re.escape(told)):
            ModelSetConfig.model_validate({"models": [{"name": "a", "source": "b", "task": "embed"}], **args})


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"engine": {"compile": "off"}}, "linear_kernel=compiled cannot be had beside compile=off; remove one of them"),
        ({"task": "embed"}, "engine.linear_kernel=compiled is for task=generate, not task=embed; remove it"),
        ({"device": {"type": "cuda"}}, "linear_kernel=compiled is for device.type=cpu; remove it"),
    ],
)
def test_compiled_products_are_of_generators_on_cpu(args: dict[str, Any], told: str) -> None:
    engine = {"linear_kernel": "compiled", **args.get("engine", {})}
    ModelConfig.model_validate({"name": "a", "source": "b", "engine": {"linear_kernel": "compiled"}})
    with pytest.raises(ValidationError, match=re.escape(told)):
        ModelConfig.model_validate({"name": "a", "source": "b", **args, "engine": engine})


@pytest.mark.parametrize(
    ("args", "is_by_prefix"),
    [
        ({}, True),
        ({"routing": "prefix"}, True),
        ({"routing": "balanced"}, False),
        ({"engine": {"prefix_cache": False}}, False),
        ({"engine": {"prefix_cache": False}, "routing": "balanced"}, False),
        ({"task": "embed"}, False),
    ],
)
def test_requests_go_by_prefix_where_there_is_a_prefix_cache(args: dict[str, Any], is_by_prefix: bool) -> None:
    assert ModelConfig.model_validate({"name": "a", "source": "b", **args}).is_routed_by_prefix is is_by_prefix


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"routing": "prefix", "engine": {"prefix_cache": False}}, "routing=prefix has no effect beside engine.prefix"),
        ({"routing": "balanced", "task": "embed"}, "routing has no effect on task=embed"),
        ({"routing": "random"}, "Input should be 'prefix' or 'balanced'"),
    ],
)
def test_a_routing_that_cannot_be_is_refused(args: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        ModelConfig.model_validate({"name": "a", "source": "b", **args})


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({"generation_config": False}, lambda one: one.generation_config),
        ({"engine": {"compile": False}}, lambda one: one.engine.compile),
        ({"device": {"type": "cuda"}, "engine": {"cuda_graphs": False}}, lambda one: one.engine.cuda_graphs),
    ],
)
def test_off_needs_no_quotes(settings: dict[str, Any], chosen: Callable[[ModelConfig], str]) -> None:
    assert chosen(ModelConfig.model_validate({"name": "a", "source": "b", **settings})) == "off"


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
    assert read_environment({"RAYSHARD_WORKER_SERVER": "/tmp/workers"}).worker_server == "/tmp/workers"
    assert (empty.shard_server, empty.worker_server) == (None, None)
