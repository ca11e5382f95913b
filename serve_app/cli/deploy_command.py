"""`rayshard deploy`: hands a checked Serve file to a running cluster, wherever that was started.

Serve resolves relative paths where the cluster was started; here they are made absolute first, from the file's folder.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from serve_app.planning.serve_file import ServeFile


def deploy(serve_file: ServeFile, address: str | None, serve_command: str | None = None) -> int:
    """Run `serve deploy`; gives its exit status. `serve_command` stands in for the command of that name in tests."""
    command = serve_command or str(Path(sys.executable).with_name("serve"))
    with tempfile.NamedTemporaryFile("w", prefix="rayshard-", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(with_absolute_paths(serve_file.path), file, allow_unicode=True, sort_keys=False)
        file.flush()
        options = [] if address is None else ["--address", address]
        return subprocess.run([command, "deploy", *options, file.name], check=False).returncode


def with_absolute_paths(path: Path) -> dict[str, Any]:
    """A Serve file's content, whose relative directories and files are those of its folder."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    folder = path.resolve().parent
    for application in content["applications"]:
        arguments = application.get("args") or {}
        for owner in (arguments, *arguments.get("models", [])):
            if isinstance(owner, dict):
                owner.update(_absolute(owner, folder))
    return content


def _absolute(arguments: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Those of the settings that name something in the folder; a hub id, or what is elsewhere, stays as it is."""
    found: dict[str, str] = {}
    for name in ("source", "api_keys_file"):
        value = arguments.get(name)
        if isinstance(value, str):
            place = folder / Path(value).expanduser()
            if place.exists():
                found[name] = os.path.abspath(place)
    return found
