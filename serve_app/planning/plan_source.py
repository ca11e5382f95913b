"""Where the files of a model are that is planned: nothing but texts and headers is fetched."""

from pathlib import Path

from serve_app.checkpoints.header_files import directory_with_headers
from serve_app.checkpoints.source import find_snapshot, is_hub_id, pin_source
from serve_app.checkpoints.weights_download import find_weights
from serve_app.config.environment import Environment
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError


def here(directory: Path) -> dict[str, object]:
    """Changes of a model's settings after which its files are those in a directory."""
    return {"source": str(directory), "revision": None, "weights": None}


def directory_to_plan(config: ModelConfig, base_dir: Path, environment: Environment) -> Path:
    """A directory with config.json and safetensors headers. Raises ConfigError."""
    missing = [one for one in config.remote_weights if find_weights(one, environment.weights_cache_dir) is None]
    if missing:
        raise ConfigError(
            f"weights.url={missing[0].url} is not on this machine; fetch it first by `rayshard validate --download`"
        )
    if is_hub_id(config.source, base_dir) and not config.remote_weights:
        snapshot = find_snapshot(config.source, config.revision, environment)
        if snapshot is None or not any(snapshot.glob("*.safetensors")):
            return directory_with_headers(config.source, config.revision, environment)
    return Path(pin_source(config.source, config.revision, base_dir, environment, config.remote_weights).directory)
