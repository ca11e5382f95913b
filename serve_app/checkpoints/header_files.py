"""A hub repository without its weights: its texts, and of safetensors files the headers, read by range requests.

Planning needs sizes and no numbers. The rest of each file is a hole, so that the reader of headers finds it whole.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from filelock import FileLock
from httpx import HTTPError
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    SafetensorsParsingError,
)

from serve_app.checkpoints.source import resolve_texts
from serve_app.checkpoints.weight_files import read_weight_map
from serve_app.config.environment import Environment
from serve_app.errors import ConfigError

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def directory_with_headers(hub_id: str, revision: str | None, environment: Environment) -> Path:
    """A directory of the cache that `read_model_spec` can read, and nothing can be served from. Raises ConfigError."""
    texts = resolve_texts(hub_id, revision, environment)
    root = environment.weights_cache_dir.parent / "headers"
    directory = root / f"{hub_id.replace('/', '--')}-{texts.name}"
    directory.mkdir(parents=True, exist_ok=True)
    names = set(read_weight_map(texts / _INDEX).values()) if (texts / _INDEX).is_file() else {_SINGLE}
    with FileLock(root / f"{directory.name}.lock"):
        for path in texts.iterdir():
            if path.is_file() and path.suffix != ".safetensors" and not (directory / path.name).exists():
                (directory / path.name).symlink_to(path.resolve())
        for name in sorted(names):
            if not (directory / name).is_file():
                _write(directory / name, _read_header(hub_id, name, texts.name, environment))
    return directory


@dataclass(frozen=True, slots=True)
class _Header:
    encoded: bytes
    data_bytes: int  # of all tensors


def _read_header(hub_id: str, name: str, commit: str, environment: Environment) -> _Header:
    api = huggingface_hub.HfApi(endpoint=environment.hub_endpoint)
    try:
        tensors = api.parse_safetensors_file_metadata(hub_id, name, revision=commit).tensors
    except GatedRepoError as error:
        raise ConfigError(f"source={hub_id} is gated; accept its terms on the hub and log in") from error
    except EntryNotFoundError as error:
        raise ConfigError(f"source={hub_id} has no {name}; give a model with safetensors files") from error
    except SafetensorsParsingError as error:
        raise ConfigError(f"source={hub_id}: {name} has no header that can be read ({error}); take another") from error
    except (OSError, HTTPError) as error:
        raise ConfigError(f"source={hub_id}: the hub did not answer ({type(error).__name__}); try again") from error
    entries = {
        key: {"dtype": one.dtype, "shape": one.shape, "data_offsets": list(one.data_offsets)}
        for key, one in tensors.items()
    }
    return _Header(json.dumps(entries).encode(), max((one.data_offsets[1] for one in tensors.values()), default=0))


def _write(path: Path, header: _Header) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(len(header.encoded).to_bytes(8, "little") + header.encoded)
        file.truncate(8 + len(header.encoded) + header.data_bytes)
    part.replace(path)
