"""The file for `ray up`, by Ray's own checks, and what it has nodes run."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "ray-cluster.yaml").read_text())
    return found


def test_ray_takes_it_and_uses_every_machine(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    (kind,) = prepared["available_node_types"].values()
    assert (kind["min_workers"], kind["max_workers"]) == (2, 2)


def test_every_node_is_started_alike_and_the_head_knows_what_serve_needs(config: dict[str, Any]) -> None:
    starts = [config[key][-1] for key in ("head_start_ray_commands", "worker_start_ray_commands")]
    for start in starts:
        assert start.startswith("cd ~/rayshard && ulimit -n 65536 && RAY_AUTH_MODE=token ")
        assert ".venv/bin/ray start --" in start
    variables = dict(re.findall(r"([A-Za-z_]+)=(\S+)", starts[0]))
    assert variables["RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS"] == "1"
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_what_it_copies_leaves_out_what_nodes_make_themselves(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["~/rayshard"] == "."
    assert {".venv", ".git"} <= set(config["rsync_exclude"])
    assert any("make install" in command for command in config["setup_commands"])
