"""What `--num-workers` and `--storage` mean, wherever several workers can train."""

from serve_app.errors import ConfigError


def wants_workers(num_workers: int, storage: str | None) -> bool:
    """Whether several workers are to train; False: this process does. Raises ConfigError."""
    if num_workers < 1:
        raise ConfigError(f"--num-workers {num_workers} is not a number of workers; give 1 or more")
    if num_workers == 1 and storage is not None:
        raise ConfigError("--storage has no effect on one worker; remove it, or give --num-workers")
    return num_workers > 1
