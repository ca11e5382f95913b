"""Writing model directories in Hugging Face's layout: either a whole one, or nothing."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from serve_app.checkpoints.checkpoint_json import read_json_list
from serve_app.checkpoints.hub_files import TEXT_FILES
from serve_app.checkpoints.quality_gate import REPORT_NAME, sha256_of
from serve_app.errors import ConfigError

MAX_FILE_BYTES = 4 * 2**30
_OWN_FILES = ("config.json", "model.safetensors.index.json", REPORT_NAME)


@contextmanager
def new_directory(directory: Path, *, can_replace: bool, needed_bytes: int = 0) -> Iterator[Path]:
    """A folder that takes the name `directory` when the `with` ends well; otherwise nothing is left of it.

    Raises ConfigError when the name is taken, or the disk has no room.
    """
    if directory.exists() and not can_replace and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty; give another name, or --overwrite")
    parent = directory.parent
    parent.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(parent).free
    if needed_bytes > free_bytes:
        raise ConfigError(f"{parent} has {free_bytes} bytes free, {directory.name} may need {needed_bytes}; make room")
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=parent))
    try:
        yield staging
        if directory.exists():
            shutil.rmtree(directory)
        staging.chmod(0o755)
        staging.rename(directory)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{directory} could not be written ({error}); make room, or give another folder") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def copy_text_files(source: Path, target: Path) -> None:
    """Tokenizer, chat template and generation settings; config.json is written by whoever changes it."""
    for pattern in TEXT_FILES:
        for path in sorted(source.glob(pattern)):
            if path.name not in _OWN_FILES:
                shutil.copyfile(path, target / path.name)
    if (source / "modules.json").is_file():
        _copy_modules(source, target)


def _copy_modules(source: Path, target: Path) -> None:
    """The folders of sentence-transformers' modules after the model itself: poolings, projections."""
    for module in read_json_list(source / "modules.json"):
        name = module.get("path") if isinstance(module, dict) else None
        if not isinstance(name, str) or not name or Path(name).name != name or not (source / name).is_dir():
            continue
        (target / name).mkdir()
        for pattern in (*TEXT_FILES, "*.safetensors"):
            for path in (source / name).glob(pattern):
                shutil.copyfile(path, target / name / path.name)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented, keys as they come."""
    path.write_text(json.dumps(content, indent=2) + "\n")


class WeightWriter:
    """Tensors to safetensors files of at most MAX_FILE_BYTES, in the order in which they come."""

    def __init__(self, directory: Path, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self._directory = directory
        self._max_file_bytes = max_file_bytes
        self._waiting: dict[str, Tensor] = {}
        self._waiting_bytes = 0
        self._files: list[list[str]] = []  # the tensors' names in each
        self.num_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one more tensor."""
        if self._waiting and self._waiting_bytes + tensor.nbytes > self._max_file_bytes:
            self._flush()
        self._waiting[name] = tensor.detach().contiguous()
        self._waiting_bytes += tensor.nbytes
        self.num_bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left, and the index where there are several files."""
        self._flush()
        if len(self._files) == 1:
            self._part(0).rename(self._directory / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for index, names in enumerate(self._files):
            file = f"model-{index + 1:05d}-of-{len(self._files):05d}.safetensors"
            self._part(index).rename(self._directory / file)
            weight_map |= dict.fromkeys(names, file)
        index_file = {"metadata": {"total_size": self.num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(self._directory / "model.safetensors.index.json", index_file)

    def _flush(self) -> None:
        if self._waiting:
            save_file(self._waiting, str(self._part(len(self._files))), metadata={"format": "pt"})
            self._part(len(self._files)).chmod(0o644)  # whoever serves it may be another user
            self._files.append(list(self._waiting))
        self._waiting, self._waiting_bytes = {}, 0

    def _part(self, index: int) -> Path:
        return self._directory / f"part-{index}.safetensors"


def save_state(directory: Path, state: Mapping[str, Tensor]) -> int:
    """Write a whole state dict; gives its bytes."""
    writer = WeightWriter(directory)
    for name, tensor in state.items():
        writer.add(name, tensor.to(torch.device("cpu")))
    writer.close()
    return writer.num_bytes


def weight_hashes(directory: Path) -> dict[str, str]:
    """sha256 of each safetensors file, by name."""
    return {path.name: sha256_of(path) for path in sorted(directory.glob("*.safetensors"))}
