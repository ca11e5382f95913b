"""A Serve file for another process, which resolves relative paths elsewhere, or listens elsewhere."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


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


def with_http_host(path: Path, host: str) -> dict[str, Any]:
    """A Serve file's content, listening at `host` whatever it says itself."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content | {"http_options": {**content.get("http_options", {}), "host": host}}


def _absolute(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Those of the settings that name something in the folder; a hub id, or what is elsewhere, stays as it is."""
    found: dict[str, Any] = {}
    for name in ("source", "api_keys_file"):
        value = arguments.get(name)
        if isinstance(value, str):
            place = folder / Path(value).expanduser()
            if place.exists():
                found[name] = os.path.abspath(place)
    batches = arguments.get("batches")
    if isinstance(batches, dict) and isinstance(batches.get("directory"), str):  # which may still have to be made
        found["batches"] = {**batches, "directory": os.path.abspath(folder / Path(batches["directory"]).expanduser())}
    return found
