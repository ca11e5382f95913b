"""Repositories of the hub: which commit a name means, and their files on this node. Imported where one is asked for."""

import glob
import logging
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

from serve_app.checkpoints.hub_files import ALLOWED_FILES, IGNORED_FILES, locks_directory, whole_mark
from serve_app.checkpoints.sentence_modules import missing_module, module_paths, transformer_directory
from serve_app.config.environment import Environment
from serve_app.errors import ConfigError

logger = logging.getLogger(__name__)


def newest_commit(hub_id: str, revision: str | None, environment: Environment) -> str:
    """The commit that a branch, tag or commit is now, as the hub says. Raises ConfigError."""
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


def known_snapshot(source: str, revision: str | None, environment: Environment) -> Path | None:
    """Directory of a repository that is on this node already, whole or not; None: there is none."""
    try:
        return _snapshot(source, revision, environment, is_local=True, files=ALLOWED_FILES)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ConfigError(_not_on_hub(source)) from error


def download(source: str, revision: str | None, environment: Environment, files: list[str]) -> Path:
    """Directory of a hub repository with these of its files, named by its commit. Raises ConfigError."""
    lock_dir = locks_directory(environment)
    try:
        lock_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_dir / f"{source.replace('/', '--')}.lock"):  # the node's other processes find it done
            path = _snapshot(source, revision, environment, is_local=environment.is_hub_offline, files=files)
            _fetch_modules(source, path, environment, files)
            if not environment.is_hub_offline:
                whole_mark(source, path.name, environment, files).touch()
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
    files: list[str],
    ignored: list[str] | None = None,
) -> Path:
    path = huggingface_hub.snapshot_download(
        source,
        revision=revision,
        cache_dir=environment.hub_cache_dir,
        endpoint=environment.hub_endpoint,
        local_files_only=is_local,
        allow_patterns=files,
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
