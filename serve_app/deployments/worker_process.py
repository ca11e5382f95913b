"""What Ray starts for each worker in place of its own setup_worker.py: has a server fork it, or runs it itself.

`python -m serve_app.deployments.worker_process default_worker.py ARGUMENT...`. Ray's own imports all of Ray, only to
become another process that does so once more.
"""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serve_app.config.server_variables import WORKER_SERVER_VARIABLE
from serve_app.deployments import shard_process
from serve_app.deployments.forked_process import ask_server, own_command, run_script

_CONTEXT = "--serialized-runtime-env-context="
_LANGUAGE = "--language="
_SHARD = [sys.executable, "-m", "serve_app.deployments.shard_process"]


def main(arguments: list[str], variables: Mapping[str, str]) -> None:
    """Be a worker of Ray's: `arguments` are its script, what that is given, and the context of its runtime_env."""
    asked = [one.removeprefix(_CONTEXT) for one in arguments if one.startswith(_CONTEXT)]
    command = [one for one in arguments if not one.startswith((_CONTEXT, _LANGUAGE))]
    executable = plain_executable(json.loads(asked[0]) if asked else {})
    if executable is None or not command[0].endswith(".py"):  # flags of Python come first, and so do other languages
        run_script([str(_rays_own()), *arguments])
    elif executable[:-1] == _SHARD:
        shard_process.main([executable[-1], *command], variables)
    elif not ask_server(variables[WORKER_SERVER_VARIABLE], own_command(command, variables)):
        run_script(command)


def plain_executable(context: Mapping[str, Any]) -> list[str] | None:
    """What is to run a worker's script: this Python, or the command for a shard.

    None where the runtime_env asks for more than that, which Ray's own script sees to.
    """
    asked = {name: value for name, value in context.items() if value}
    executable = shlex.split(asked.pop("py_executable", shlex.quote(sys.executable)))
    is_known = executable == [sys.executable] or executable[:-1] == _SHARD
    return executable if is_known and not asked else None


def _rays_own() -> Path:
    package = find_spec("ray")  # which does not import it
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "_private" / "workers" / "setup_worker.py"


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
