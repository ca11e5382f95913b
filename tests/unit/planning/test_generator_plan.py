"""What a shard of a generator is told of the settings of its engine."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.planning.generator_plan import plan_generator
from tests.checkpoints import make_checkpoint


@pytest.mark.parametrize(
    ("settings", "block_size"),
    [
        ({"engine": {"block_size": 32}}, 32),
        ({"routing": "balanced"}, None),
        ({"engine": {"prefix_cache": False}}, None),
    ],
)
def test_gateways_are_told_by_which_blocks_to_choose_a_copy(
    settings: dict[str, Any], block_size: int | None, tmp_path: Path
) -> None:
    directory = make_checkpoint("llama", tmp_path / "llama")
    config = ModelConfig.model_validate({"name": "m", "source": str(directory), **settings})
    plan = plan_generator(config, tmp_path, read_environment({"XDG_CACHE_HOME": str(tmp_path)}))
    assert plan.describe(max_request_tokens=64, created_s=0).routed_block_size == block_size


@pytest.mark.parametrize(
    ("settings", "is_compiled"),
    [({}, True), ({"engine": {"compile": "off"}}, False), ({"device": {"type": "cuda"}}, False)],
)
def test_kernels_are_compiled_on_cpu_unless_that_is_off(
    settings: dict[str, Any], is_compiled: bool, tmp_path: Path
) -> None:
    directory = make_checkpoint("llama", tmp_path / "llama")
    config = ModelConfig.model_validate({"name": "m", "source": str(directory), **settings})
    plan = plan_generator(config, tmp_path, read_environment({"XDG_CACHE_HOME": str(tmp_path)}))
    assert plan.settings(plan.shards[0], num_threads=1).is_compiled is is_compiled
