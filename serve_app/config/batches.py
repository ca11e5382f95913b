"""What the Gateway's batches may take."""

import os
from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt

from serve_app.config.base import ByteSize, ConfigModel
from serve_app.errors import ConfigError


class BatchesConfig(ConfigModel):
    """`batches` of the Gateway: files of requests that are worked off while nothing else wants the models."""

    directory: str = Field(min_length=1)
    """Where files, batches and their results are kept; Gateways of several nodes need one that they share."""
    max_file_bytes: ByteSize = 209_715_200
    """Largest file that is taken; a larger one is answered 413."""
    max_requests: int = Field(default=50_000, gt=0, le=1_000_000)
    """Most requests in one file. [requests]"""
    max_stored_bytes: ByteSize = 10_737_418_240
    """What the files of one API key may take in all; more is taken when some are deleted."""
    upload_timeout_s: PositiveFloat = 600.0
    """How long a file may take to arrive; then 408."""
    keep_days: float = Field(default=30.0, gt=0, le=3650)
    """How long files and batches are kept; then they are deleted. [days]"""
    concurrency: PositiveInt = 8
    """Requests of batches that one Gateway replica runs at once. [requests]"""
    request_timeout_s: PositiveFloat = 600.0
    """How long one request of a batch may take; then its answer is 504."""


def check_batches_directory(config: BatchesConfig, base_dir: Path) -> Path:
    """The directory that the settings name, from base_dir if it is relative. Raises ConfigError that says why not."""
    directory = base_dir / Path(config.directory).expanduser()
    field = "batches.directory"
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is not a directory; name one that the Gateway can write to", field=field)
    if not directory.exists() and not directory.parent.is_dir():
        raise ConfigError(
            f"{directory.parent} is not there; make it, or name another directory for batches", field=field
        )
    return directory


def open_batches_directory(config: BatchesConfig) -> Path:
    """The same, made if it is not there, and known to be writable. Raises ConfigError."""
    directory, field = check_batches_directory(config, Path.cwd()), "batches.directory"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be made ({error.strerror})", field=field) from error
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"{directory} cannot be written to by this process; change its owner or mode", field=field)
    return directory
