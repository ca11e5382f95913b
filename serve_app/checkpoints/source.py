"""From the `source` of a model to a directory on this node: a path, or a snapshot of a hub repository."""

import difflib
import glob
import logging
import platform
import re
from pathlib import Path

import huggingface_hub
from filelock import FileLock
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from serve_app.checkpoints.sentence_modules import missing_module, module_paths, transformer_directory
from serve_app.checkpoints.weights_download import directory_with_weights
from serve_app.config.environment import Environment
from serve_app.errors import ConfigError
from serve_app.types.models import ModelSource, RemoteWeights

TEXT_FILES = ["*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
ALLOWED_FILES = ["*.safetensors", *TEXT_FILES]
IGNORED_FILES = ["*/*", "consolidated*"]  # copies of the weights in other layouts

logger = logging.getLogger(__name__)


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
        return _download(hub_id, revision, environment).name
    try:
        commit = huggingface_hub.HfApi(endpoint=environment.hub_endpoint).model_info(hub_id, revision=revision).sha
    except RevisionNotFoundError as error:
        raise ConfigError(_no_revision(hub_id, revision)) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(_not_on_hub(hub_id)) from error
    except OSError as error:
        raise ConfigError(f"source={hub_id}: the hub did not answer ({type(error).__name__}); try again") from error
    assert commit is not None
    return commit


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
            environment.is_hub_offline or _whole_mark(source.hub_id, directory.name, environment, files).exists()
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
    try:
        path = _snapshot(source, revision, environment, is_local=True)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ConfigError(_not_on_hub(source)) from error
    return path if _is_whole(path, needs_weights=False) else None


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


def _locks(environment: Environment) -> Path:
    return environment.hub_cache_dir / ".locks" / "rayshard"


def _whole_mark(hub_id: str, commit: str, environment: Environment, files: list[str]) -> Path:
    """A file that is there once all of a snapshot is: a directory alone may be what a download left that was ended."""
    kind = "texts" if files == TEXT_FILES else "all"
    return _locks(environment) / f"{hub_id.replace('/', '--')}--{commit}.{kind}"


def _download(source: str, revision: str | None, environment: Environment, files: list[str] | None = None) -> Path:
    lock_dir = _locks(environment)
    files = files or ALLOWED_FILES
    try:
        lock_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_dir / f"{source.replace('/', '--')}.lock"):  # the node's other processes find it done
            path = _snapshot(source, revision, environment, is_local=environment.is_hub_offline, files=files)
            _fetch_modules(source, path, environment, files)
            if not environment.is_hub_offline:
                _whole_mark(source, path.name, environment, files).touch()
    except GatedRepoError as error:
        raise ConfigError(f"source={source} is gated; accept its terms on the hub and log in") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(_not_on_hub(source)) from error
    except RevisionNotFoundError as error:
        raise ConfigError(_no_revision(source, revision)) from error
    except LocalEntryNotFoundError as error:
        reason = "the hub is switched off by HF_HUB_OFFLINE" if environment.is_hub_offline else "the hub did not answer"
        raise ConfigError(
            f"source={source} is not on this node and {reason}; download it first, or give a path"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"source={source} could not be downloaded ({type(error).__name__}: {error}); try again"
        ) from error
    logger.info("source resolved id=%s revision=%s commit=%s", source, revision or "main", path.name)
    return path


def _fetch_modules(source: str, directory: Path, environment: Environment, files: list[str]) -> None:
    """Bring the sub-directories that modules.json names: of its Transformer `files`, of the others all that is read."""
    wanted = [
        f"{glob.escape(path)}/{pattern}"
        for path in module_paths(directory)
        for pattern in (files if directory / path == transformer_directory(directory) else ALLOWED_FILES)
    ]
    if not wanted:
        return
    if environment.is_hub_offline:
        missing = missing_module(directory)
        if missing is not None:
            raise ConfigError(
                f"source={source}: {missing}, which modules.json names, is not on this node and the hub is switched "
                "off by HF_HUB_OFFLINE; download it first, or give a path"
            )
        return
    deeper = [f"{glob.escape(path)}/*/*" for path in module_paths(directory)]
    _snapshot(source, directory.name, environment, is_local=False, files=wanted, ignored=deeper)


def _snapshot(
    source: str,
    revision: str | None,
    environment: Environment,
    *,
    is_local: bool,
    files: list[str] | None = None,
    ignored: list[str] | None = None,
) -> Path:
    path = huggingface_hub.snapshot_download(
        source,
        revision=revision,
        cache_dir=environment.hub_cache_dir,
        endpoint=environment.hub_endpoint,
        local_files_only=is_local,
        allow_patterns=files or ALLOWED_FILES,
        ignore_patterns=IGNORED_FILES if ignored is None else ignored,
    )
    return Path(path).resolve()


def _no_revision(source: str, revision: str | None) -> str:
    return f"revision={revision} is not a branch, tag or commit of source={source}; correct it"


def _not_on_hub(source: str) -> str:
    return (
        f"source={source} is neither a directory nor a model on the hub that you may read; "
        "correct the name, or log in to the hub"
    )
