"""What the files of an nn.Module say, without torch: its tensors, arguments and labels."""

from dataclasses import dataclass
from pathlib import Path

from serve_app.checkpoints.checkpoint_json import damaged, read_json
from serve_app.checkpoints.module_files import read_labels, read_module_quantization, read_module_tensors
from serve_app.checkpoints.python_source import find_problem
from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.types.shards import WeightScheme


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """One module's files."""

    source_dir: Path
    architecture: str
    arguments: dict[str, object]  # config.json's, then the YAML's
    labels: list[str]  # by output index; empty: it names none
    has_tokenizer: bool
    tensors: dict[str, TensorHeader]
    num_bytes: int
    quantization: dict[str, WeightScheme]  # by parameter; empty: none is


def read_module_spec(config: ModelConfig, source_dir: Path) -> ModuleSpec:
    """The module that `config` names, with its files in `source_dir`. Raises ConfigError."""
    assert config.architecture is not None
    _check_importable(config.architecture)
    path = source_dir / "config.json"
    values = read_json(path) if path.is_file() else {}
    arguments = values.get("arguments", {})
    if not isinstance(arguments, dict):
        raise damaged(path, "arguments that are not an object")
    tensors = read_module_tensors(source_dir)
    return ModuleSpec(
        source_dir=source_dir,
        architecture=config.architecture,
        arguments={**arguments, **config.arguments},
        labels=read_labels(path, values),
        has_tokenizer=(source_dir / "tokenizer.json").is_file(),
        tensors=tensors,
        num_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
        quantization=read_module_quantization(source_dir),
    )


def _check_importable(architecture: str) -> None:
    problem = find_problem(*architecture.split(":"))
    if problem is not None:
        raise ConfigError(f"architecture={architecture}: {problem}", field="architecture")
