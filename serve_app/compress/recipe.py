"""`recipe.yaml`: what was done to a model, so that it can be done again to the byte."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from serve_app.compress.artifact import weight_hashes

_PACKAGES = ("rayshard", "torch", "transformers", "safetensors", "compressed-tensors", "llmcompressor")


def write_recipe(directory: Path, source: Path, step: str, settings: Mapping[str, Any]) -> None:
    """Add a step to the recipe that `source` may have, and write it into `directory`."""
    done = read_recipe(source)
    done.append({"step": step, **settings, "source_sha256": weight_hashes(source), "versions": _versions()})
    (directory / "recipe.yaml").write_text(yaml.safe_dump({"steps": done}, sort_keys=False))


def read_recipe(directory: Path) -> list[dict[str, Any]]:
    """The steps that led to a model; empty: none of ours."""
    path = directory / "recipe.yaml"
    if not path.is_file():
        return []
    content = yaml.safe_load(path.read_text())
    steps = content.get("steps") if isinstance(content, dict) else None
    return list(steps) if isinstance(steps, list) else []


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
