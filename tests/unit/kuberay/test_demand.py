"""What applications ask of pods: copies by Serve's rules, memory by what is stored."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.kuberay.demand import UNKNOWN_MEMORY, Copies, copies_of, demand_of
from serve_app.planning.device_choice import Surroundings
from serve_app.planning.device_profiles import load_profiles
from serve_app.planning.serve_options import DeploymentOptions
from tests.published_models import write_headers


@pytest.mark.parametrize(
    ("given", "copies"),
    [
        ({}, (1, 1, 1)),
        ({"num_replicas": 3}, (3, 3, 3)),
        ({"num_replicas": "auto"}, (1, 1, 100)),
        ({"num_replicas": "auto", "autoscaling_config": {"max_replicas": 5}}, (1, 1, 5)),
        ({"autoscaling_config": {"min_replicas": 0, "initial_replicas": 2, "max_replicas": 4}}, (0, 2, 4)),
        ({"autoscaling_config": {"min_replicas": 2, "max_replicas": 4}}, (2, 2, 4)),
    ],
)
def test_copies_are_those_that_serve_may_run(given: dict[str, Any], copies: tuple[int, int, int]) -> None:
    assert copies_of(DeploymentOptions.model_validate({"name": "Router", **given})) == Copies(*copies)


def test_a_deployment_that_is_not_mentioned_has_one_replica() -> None:
    assert copies_of(None) == Copies(1, 1, 1)


def test_a_model_of_one_step_is_sized_by_its_tensors(tmp_path: Path) -> None:
    write_headers(tmp_path / "model.safetensors", {"a": (1024, 1024), "b": (1024, 1024)})
    config = ModelConfig.model_validate({"name": "mood", "source": str(tmp_path), "task": "classify"})
    around = Surroundings(load_profiles(), memory_bytes=UNKNOWN_MEMORY)
    found = demand_of("mood", [config], Copies(1, 1, 1), tmp_path, read_environment({}), around)
    mib = 1024**2
    assert found.shard_bytes == 2 * 4 * mib * 5 // 4 + (512 + 480) * mib  # float32, with a quarter more; steps, process
    assert (found.num_threads, found.num_shards, found.is_on_gpu) == (1, 1, False)
