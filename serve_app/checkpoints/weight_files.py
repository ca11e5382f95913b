"""Which safetensors files make up a checkpoint, and the headers of all their tensors."""

from pathlib import Path

from serve_app.checkpoints.checkpoint_json import damaged, read_json, shown, some
from serve_app.checkpoints.safetensors_header import MAX_TENSORS, TensorHeader, read_safetensors_header
from serve_app.errors import ConfigError

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def find_weight_files(source_dir: Path) -> list[Path]:
    """The safetensors files that make up the model, as transformers chooses them."""
    single, index = source_dir / "model.safetensors", source_dir / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(read_weight_map(index).values()))
        missing = [name for name in names if not (source_dir / name).is_file()]
        if missing:
            raise ConfigError(
                f"source={source_dir}: {index.name} names {some(missing)}, not in the directory; copy the files there"
            )
        return [source_dir / name for name in names]
    names = sorted(path.name for path in source_dir.iterdir())
    raise ConfigError(f"source={source_dir} {_why_no_weights(names)}")


def read_tensors(source_dir: Path, files: list[Path]) -> dict[str, TensorHeader]:
    """The headers of all tensors in the files. Raises ConfigError where they are not those that the index names."""
    tensors: dict[str, TensorHeader] = {}
    for path in files:
        header = read_safetensors_header(path)
        twice = sorted(header.keys() & tensors.keys())
        if twice or len(tensors) + len(header) > MAX_TENSORS:
            raise damaged(path, f"{some(twice)} again" if twice else f"more than {MAX_TENSORS} tensors in all")
        tensors |= header
    if (source_dir / "model.safetensors") in files:
        return tensors
    weight_map = read_weight_map(source_dir / "model.safetensors.index.json")
    absent = [name for name, file in weight_map.items() if name not in tensors or tensors[name].file.name != file]
    if absent:
        raise damaged(source_dir / "model.safetensors.index.json", f"tensors that its files lack: {some(absent)}")
    return tensors


def read_weight_map(index: Path) -> dict[str, str]:
    """Which file holds each tensor, by model.safetensors.index.json. Raises ConfigError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(index, "no weight_map")
    names: dict[str, str] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise damaged(index, f"{shown(name)} as a file, which is not a safetensors file beside it")
        names[tensor] = name
    return names


def _why_no_weights(names: list[str]) -> str:
    safetensors = [name for name in names if name.endswith(".safetensors")]
    pickled = [name for name in names if name.endswith(_PICKLE_SUFFIXES)]
    if safetensors:
        return f"has {some(safetensors)} but no model.safetensors; rename it, or add model.safetensors.index.json"
    if any(name.endswith(".gguf") for name in names):
        return "holds GGUF files, which are not served; give the original model as safetensors"
    if pickled:
        return (
            f"has only pickled weights ({some(pickled)}), which are never unpickled because that runs code; "
            "convert them to safetensors"
        )
    return "has no safetensors files; give a directory with model.safetensors or model.safetensors.index.json"
