"""Tensors and labels of a directory, whatever model they are of."""

from pathlib import Path

from serve_app.planning.checkpoint_json import damaged, read_json, some
from serve_app.planning.model_spec import find_weight_files
from serve_app.planning.safetensors_header import MAX_TENSORS, TensorHeader, read_safetensors_header


def read_module_tensors(source_dir: Path) -> dict[str, TensorHeader]:
    """All tensors of the safetensors files in `source_dir`. Raises ConfigError."""
    tensors: dict[str, TensorHeader] = {}
    for file in find_weight_files(source_dir):
        header = read_safetensors_header(file)
        twice = sorted(header.keys() & tensors.keys())
        if twice or len(tensors) + len(header) > MAX_TENSORS:
            raise damaged(file, f"{some(twice)} again" if twice else f"more than {MAX_TENSORS} tensors in all")
        tensors |= header
    return tensors


def labels_of(source_dir: Path) -> list[str]:
    """The labels of a model in `source_dir`, by index; empty when it names none. Raises ConfigError."""
    path = source_dir / "config.json"
    return read_labels(path, read_json(path)) if path.is_file() else []


def read_labels(path: Path, values: dict[str, object]) -> list[str]:
    """`id2label` of a config.json, by index; empty when it has none. Raises ConfigError."""
    labels = values.get("id2label")
    if labels is None:
        return []
    if not isinstance(labels, dict):
        raise damaged(path, "id2label that is no object")
    names = [labels.get(str(index)) for index in range(len(labels))]
    if not all(isinstance(name, str) for name in names):
        raise damaged(path, f"id2label without the keys 0 to {len(labels) - 1}")
    return [str(name) for name in names]
