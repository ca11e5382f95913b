"""How a worker of Ray's comes to run: forked, by itself, as a shard, or as Ray's own script has it."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.server_variables import WORKER_SERVER_VARIABLE
from serve_app.deployments.worker_process import plain_executable

WORKER = """
import json, os, sys
from pathlib import Path

Path(sys.argv[1]).write_text(json.dumps([sys.argv[1:], os.getpid(), os.environ.get("COLOUR")]))
"""
EMPTY: dict[str, Any] = {"command_prefix": [], "env_vars": {}, "override_worker_entrypoint": None, "java_jars": []}
SHARD = [sys.executable, "-m", "serve_app.deployments.shard_process", "/tmp/a b/shards"]


@pytest.mark.parametrize(
    ("asked", "executable"),
    [
        ({}, [sys.executable]),
        ({**EMPTY, "py_executable": sys.executable}, [sys.executable]),
        ({**EMPTY, "py_executable": shlex.join(SHARD)}, SHARD),
        ({**EMPTY, "py_executable": "/usr/bin/python3"}, None),
        ({**EMPTY, "py_executable": f"{sys.executable} -m cProfile"}, None),
        ({**EMPTY, "py_executable": sys.executable, "env_vars": {"COLOUR": "red"}}, None),
        ({**EMPTY, "py_executable": shlex.join(SHARD), "env_vars": {"COLOUR": "red"}}, None),
        ({**EMPTY, "py_executable": sys.executable, "command_prefix": ["cd", "/tmp", "&&"]}, None),
        ({**EMPTY, "py_executable": sys.executable, "something_new": 1}, None),
    ],
)
def test_what_a_runtime_env_asks_for_is_left_to_ray(asked: dict[str, Any], executable: list[str] | None) -> None:
    assert plain_executable(asked) == executable


def context(**asked: object) -> list[str]:
    return ["--language=PYTHON", f"--serialized-runtime-env-context={json.dumps(asked)}"]


@pytest.mark.process
@pytest.mark.parametrize(
    "given",
    [
        ["SCRIPT", "TOLD"],
        ["SCRIPT", "TOLD", *context()],
        ["SCRIPT", "TOLD", *context(env_vars={"COLOUR": "red"})],
        ["-s", "SCRIPT", "TOLD", *context()],
        ["SCRIPT", "TOLD", *context(py_executable=shlex.join(SHARD))],
    ],
    ids=["plain", "empty", "variables", "flags", "shard"],
)
def test_without_a_server_it_is_the_process_that_was_meant(given: list[str], tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    names = {"SCRIPT": str(tmp_path / "worker.py"), "TOLD": str(tmp_path / "told")}
    command = [sys.executable, "-mserve_app.deployments.worker_process", *(names.get(one, one) for one in given)]
    variables = {**os.environ, WORKER_SERVER_VARIABLE: str(tmp_path / "socket")}
    (tmp_path / "socket").touch()  # one that has ended leaves it behind
    with subprocess.Popen(command, env=variables) as process:
        assert process.wait(60) == 0
    arguments, pid, colour = json.loads((tmp_path / "told").read_text())
    assert arguments == [str(tmp_path / "told")]
    assert pid == process.pid
    assert colour == ("red" if "COLOUR" in str(given) else None)
