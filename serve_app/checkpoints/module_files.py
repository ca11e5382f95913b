"""Tensors and labels of a directory, whatever model they are of."""

import logging
from collections import Counter
from pathlib import Path

from serve_app.checkpoints.checkpoint_json import damaged, read_json, shown, some
from serve_app.checkpoints.safetensors_header import MAX_TENSORS, TensorHeader, read_safetensors_header
from serve_app.checkpoints.weight_files import find_weight_files
from serve_app.errors import ConfigError
from serve_app.types.shards import WeightScheme

MODULE_METHOD = "rayshard"  # `quant_method` of an nn.Module's config.json
SCALE_SUFFIX = "_scale"  # of the tensor beside a quantized one

logger = logging.getLogger(__name__)


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


def read_module_quantization(source_dir: Path) -> dict[str, WeightScheme]:
    """The schemes of the parameters that `rayshard compress quantize` has quantized. Raises ConfigError."""
    path = source_dir / "config.json"
    section = read_json(path).get("quantization_config") if path.is_file() else None
    if section is None:
        return {}
    known = {"int8": WeightScheme(8, has_quantized_inputs=True), "int8_weight_only": WeightScheme(8)}
    if not isinstance(section, dict) or section.get("quant_method") != MODULE_METHOD:
        raise ConfigError(f"{path}: quantization_config is not of rayshard compress; give a module that is")
    scheme, names = known.get(str(section.get("kernel"))), section.get("parameters")
    if scheme is None or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{path}: quantization_config names no parameters, or a kernel other than {', '.join(known)}; quantize the "
            "model again"
        )
    return dict.fromkeys(names, scheme)


def labels_of(source_dir: Path) -> list[str]:
    """The labels of a model in `source_dir`, by index; empty when it names none. Raises ConfigError."""
    path = source_dir / "config.json"
    return read_labels(path, read_json(path)) if path.is_file() else []


def read_labels(path: Path, values: dict[str, object]) -> list[str]:
    """`id2label` of a config.json, by index; empty when it has none. Raises ConfigError.

    Answers give numbers by their labels, so a label that stands there twice is followed by its index each time.
    """
    labels = values.get("id2label")
    if labels is None:
        return []
    if not isinstance(labels, dict):
        raise damaged(path, "id2label that is not an object")
    names = [labels.get(str(index)) for index in range(len(labels))]
    if not all(isinstance(name, str) for name in names):
        raise damaged(path, f"id2label without the keys 0 to {len(labels) - 1}")
    return _distinct([str(name) for name in names], path)


def _distinct(names: list[str], path: Path) -> list[str]:
    numbers = Counter(names)
    twice = [name for name, number in numbers.items() if number > 1]
    if not twice:
        return names
    distinct = [f"{name}#{index}" if numbers[name] > 1 else name for index, name in enumerate(names)]
    if len(set(distinct)) < len(distinct):  # one of the others is called so
        distinct = [f"{name}#{index}" for index, name in enumerate(names)]
    logger.warning("%s: id2label has %s more than once; labels are shown as %s", path, shown(twice[0]), some(distinct))
    return distinct
