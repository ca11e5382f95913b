"""From the `source` of a model to a directory on this node: a path, or a snapshot of a hub repository."""

import difflib
import platform
import re
from pathlib import Path

from serve_app.checkpoints.hub_files import ALLOWED_FILES, TEXT_FILES, whole_mark
from serve_app.checkpoints.sentence_modules import missing_module, transformer_directory
from serve_app.checkpoints.weights_download import directory_with_weights
from serve_app.config.environment import Environment
from serve_app.errors import ConfigError
from serve_app.types.models import ModelSource, RemoteWeights


def resolve_source(
    source: str, revision: str | None, base_dir: Path, environment: Environment, weights: tuple[RemoteWeights, ...] = ()
) -> Path:
    """Absolute directory of the model; a hub repository is downloaded, and the directory is named by its commit.

    `weights` are downloaded too: the directory is then one that joins both. Raises ConfigError. `base_dir` is what a
    relative path is relative to.
    """
    if weights:
        base = _resolve(source, revision, base_dir, environment, TEXT_FILES)
        return directory_with_weights(base, weights, environment.weights_cache_dir)
    return _resolve(source, revision, base_dir, environment, ALLOWED_FILES)


def _resolve(source: str, revision: str | None, base_dir: Path, environment: Environment, files: list[str]) -> Path:
    if is_hub_id(source, base_dir):
        return _download(source, revision, environment, files)
    directory = _absolute(source, base_dir)
    if not directory.is_dir():
        raise ConfigError(f"source={source} {_why_no_directory(directory)}")
    if revision is not None:
        raise ConfigError(f"revision={revision} has no effect on the directory source={source}; remove it")
    return directory


def pin_revision(hub_id: str, revision: str | None, environment: Environment) -> str:
    """The commit that a branch, tag or commit of a hub repository is now. Raises ConfigError."""
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    if environment.is_hub_offline:
        return _download(hub_id, revision, environment, ALLOWED_FILES).name
    from serve_app.checkpoints.hub import newest_commit

    return newest_commit(hub_id, revision, environment)


def pin_source(
    source: str, revision: str | None, base_dir: Path, environment: Environment, weights: tuple[RemoteWeights, ...] = ()
) -> ModelSource:
    """The source as every node can find it: an absolute directory, or a hub id with its commit. Raises ConfigError."""
    base = _resolve(source, revision, base_dir, environment, TEXT_FILES if weights else ALLOWED_FILES)
    hub_id, commit = (source, base.name) if is_hub_id(source, base_dir) else (None, None)
    if not weights:
        return ModelSource(str(base), hub_id, commit)
    directory = directory_with_weights(base, weights, environment.weights_cache_dir)
    return ModelSource(str(directory), hub_id, commit, weights, str(base))


def resolve_texts(hub_id: str, revision: str | None, environment: Environment) -> Path:
    """A hub repository without its weights, downloaded; named by its commit. Raises ConfigError."""
    return _download(hub_id, revision, environment, TEXT_FILES)


def local_directory(source: ModelSource, environment: Environment, *, needs_weights: bool = True) -> Path:
    """A pinned source on this node; a hub repository is downloaded once per node. Raises ConfigError."""
    if source.weights:
        base = ModelSource(source.base_directory or source.directory, source.hub_id, source.commit)
        directory = local_directory(base, environment, needs_weights=False)
        if not needs_weights:
            return directory
        return directory_with_weights(directory, source.weights, environment.weights_cache_dir)
    directory = Path(source.directory)
    if source.hub_id is None:
        if directory.is_dir():
            return directory
        raise ConfigError(
            f"source={directory} is not on the node {platform.node()}; keep models on storage that all nodes share, "
            "or give a hub id"
        )
    files = ALLOWED_FILES if needs_weights else TEXT_FILES
    if directory.is_dir() and _is_whole(directory, needs_weights=needs_weights):
        is_certain = (
            environment.is_hub_offline or whole_mark(source.hub_id, directory.name, environment, files).exists()
        )
        if is_certain:
            return directory
    return _download(source.hub_id, source.commit, environment, files)


def is_hub_id(source: str, base_dir: Path) -> bool:
    """Whether `source` is org/name on the hub: no path that exists, nor one whose first part does."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*", source) is None:
        return False
    return not _absolute(source, base_dir).exists() and not _absolute(source.split("/")[0], base_dir).is_dir()


def find_snapshot(source: str, revision: str | None, environment: Environment) -> Path | None:
    """Directory of a hub repository that is already on this node; None when it is not, or not whole."""
    from serve_app.checkpoints.hub import known_snapshot

    path = known_snapshot(source, revision, environment)
    return path if path is not None and _is_whole(path, needs_weights=False) else None


def _is_whole(directory: Path, *, needs_weights: bool) -> bool:
    """Whether a directory holds what its modules need, as far as names tell."""
    has_weights = any(transformer_directory(directory).glob("*.safetensors"))
    return missing_module(directory) is None and (has_weights or not needs_weights)


def _absolute(source: str, base_dir: Path) -> Path:
    return (base_dir / Path(source).expanduser()).resolve()


def _why_no_directory(path: Path) -> str:
    if path.suffix == ".gguf":
        return "is a GGUF file, which is not served; give a directory with config.json and safetensors files"
    if path.is_file():
        return f"is a file; give its directory, {path.parent}"
    parent = next(parent for parent in path.parents if parent.is_dir())
    missing = path.relative_to(parent).parts[0]
    names = sorted(child.name for child in parent.iterdir() if child.is_dir() and not child.name.startswith("."))
    closest = difflib.get_close_matches(missing, names, n=1)
    way_out = (
        f"did you mean {parent / closest[0]}?" if closest else "give an existing directory, or a hub id (org/name)"
    )
    return f"is not a directory: {parent} exists, but has no {missing!r}; {way_out}"


def _download(source: str, revision: str | None, environment: Environment, files: list[str]) -> Path:
    from serve_app.checkpoints.hub import download  # 7 MB that a process without a hub's model has no use for

    return download(source, revision, environment, files)
