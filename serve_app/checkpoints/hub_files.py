"""Which files of a hub repository are fetched, and where is noted that they are there."""

from pathlib import Path

from serve_app.config.environment import Environment

TEXT_FILES = ["*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
ALLOWED_FILES = ["*.safetensors", *TEXT_FILES]
IGNORED_FILES = ["*/*", "consolidated*"]  # copies of the weights in other layouts


def locks_directory(environment: Environment) -> Path:
    """Of the hub's cache, ours."""
    return environment.hub_cache_dir / ".locks" / "rayshard"


def whole_mark(hub_id: str, commit: str, environment: Environment, files: list[str]) -> Path:
    """A file that is there once all of a snapshot is: a directory alone may be what a download left that was ended."""
    kind = "texts" if files == TEXT_FILES else "all"
    return locks_directory(environment) / f"{hub_id.replace('/', '--')}--{commit}.{kind}"
