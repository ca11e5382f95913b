"""Asks a process that has torch whether modules can be loaded, so that this one needs neither torch nor their code."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

import serve_app
from serve_app.types.shards import BatchModelSettings

_MAX_S = 300.0
_MODULE = "serve_app.engine.module_check"


def find_module_problems(models: Sequence[Sequence[BatchModelSettings]]) -> list[str | None]:
    """For each model, given by the settings of its stages, why it cannot be loaded; None: it can."""
    if not models:
        return []
    assert serve_app.__file__ is not None
    with tempfile.TemporaryDirectory(prefix="rayshard-check-") as directory:
        asked, answered = Path(directory) / "asked.json", Path(directory) / "answered.json"
        asked.write_bytes(msgspec.json.encode({"import_path": sys.path, "models": models}))
        command = [sys.executable, "-m", _MODULE, str(asked), str(answered)]
        root = Path(serve_app.__file__).parents[1]  # first on the child's path: the same serve_app
        try:
            ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_MAX_S, check=False)
        except subprocess.TimeoutExpired:
            return [f"was not built within {_MAX_S:g} s; mend the constructor of its class"] * len(models)
        if not answered.is_file():
            *_, reason = ["", *ended.stderr.strip().splitlines()]
            return [f"cannot be built: its process ended with status {ended.returncode} ({reason})"] * len(models)
        return msgspec.json.decode(answered.read_bytes(), type=list[str | None])
