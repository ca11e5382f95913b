"""The child of `rayshard serve`, as far as it comes without a cluster."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import ray._private.node

from serve_app.cli.serve_child import HeadNode


@pytest.mark.parametrize("name", ["start_api_server", "start_monitor", "start_ray_processes"])
def test_what_is_put_off_is_what_ray_starts(name: str) -> None:
    own, of_ray = getattr(HeadNode, name), getattr(ray._private.node.Node, name)
    assert own is not of_ray
    assert list(inspect.signature(own).parameters) == list(inspect.signature(of_ray).parameters)


@pytest.mark.process
def test_it_ends_without_a_trace_when_it_is_never_told_to_begin(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve_app.cli.serve_child", "serve_config.yaml"]
    ended = subprocess.run(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
