"""What a checkpoint is, from its config.json and its safetensors headers alone: no torch, no weights read."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import ConfigError
from serve_app.planning.architectures import ARCHITECTURES, HEAD_PATTERN, Architecture, layer_of

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_JSON_BYTES = 32 * 1024**2
MAX_TENSORS = 100_000
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SERVED_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
DTYPE_BITS = (
    {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64, "BOOL": 8}
    | {"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8}
    | {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
    | {"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
)


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor of a safetensors file."""

    file: Path
    dtype: str  # as safetensors writes it: F32, BF16, ...
    shape: tuple[int, ...]
    num_bytes: int
    offset_bytes: int  # of its first byte in the file


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes and tensors of one checkpoint."""

    source_dir: Path
    model_type: str
    architectures: tuple[str, ...]
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int | None
    num_experts: int | None
    vocab_size: int
    max_position_embeddings: int | None
    is_tied: bool  # the head is the embedding
    dtype: str  # as torch names it
    sliding_window: int | None
    quantization_method: str | None
    tensors: dict[str, TensorHeader]
    num_bytes: int  # of all tensors


def read_model_spec(source_dir: Path) -> ModelSpec:
    """The checkpoint in `source_dir`. Raises ConfigError when it is none that can be served."""
    if not source_dir.is_dir():
        raise ConfigError(f"source={source_dir} is no directory; give one with config.json and safetensors files")
    if (source_dir / "adapter_config.json").exists():
        raise ConfigError(f"source={source_dir} is an adapter (LoRA); merge it into its base model and give that")
    weight_files = find_weight_files(source_dir)
    config = _read_config(source_dir)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ConfigError(
            f"source={source_dir}: model_type={_shown(model_type)} in config.json is not supported; "
            f"use a model of type {', '.join(sorted(ARCHITECTURES))}"
        )
    tensors = _read_tensors(source_dir, weight_files)
    spec = _spec_of(source_dir, ARCHITECTURES[model_type], config, tensors)
    _check_completeness(spec)
    return spec


def find_weight_files(source_dir: Path) -> list[Path]:
    """The safetensors files that make up the model, as transformers chooses them."""
    single, index = source_dir / "model.safetensors", source_dir / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(_read_weight_map(index).values()))
        missing = [name for name in names if not (source_dir / name).is_file()]
        if missing:
            raise ConfigError(
                f"source={source_dir}: {index.name} names {_some(missing)}, not in the directory; copy the files there"
            )
        return [source_dir / name for name in names]
    names = sorted(path.name for path in source_dir.iterdir())
    raise ConfigError(f"source={source_dir} {_why_no_weights(names)}")


def read_safetensors_header(path: Path) -> dict[str, TensorHeader]:
    """The tensors of one file. Raises ConfigError unless header and file agree to the byte."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little") if file_bytes >= 8 else -1
        if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
            raise _broken(path, f"a header of {header_bytes} bytes in a file of {file_bytes}")
        header = _parse_json(file.read(header_bytes), path)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise _broken(path, f"{len(header)} tensors, more than {MAX_TENSORS}")
    data_bytes = file_bytes - 8 - header_bytes
    tensors: dict[str, TensorHeader] = {}
    end = 0
    for placed in sorted((_place(path, 8 + header_bytes, name, entry) for name, entry in header.items()), key=_order):
        if placed.begin != end or placed.end - placed.begin != placed.tensor.num_bytes or placed.end > data_bytes:
            raise _broken(path, f"tensor {_shown(placed.name)} at bytes {placed.begin} to {placed.end} of {data_bytes}")
        tensors[placed.name] = placed.tensor
        end = placed.end
    if end != data_bytes:
        raise _broken(path, f"{data_bytes - end} bytes that belong to no tensor")
    return tensors


def _why_no_weights(names: list[str]) -> str:
    safetensors = [name for name in names if name.endswith(".safetensors")]
    pickled = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if safetensors:
        return f"has {_some(safetensors)} but no model.safetensors; rename it, or add model.safetensors.index.json"
    if any(name.endswith(".gguf") for name in names):
        return "holds GGUF files, which are not served; give the original model as safetensors"
    if pickled:
        return (
            f"has only pickled weights ({_some(pickled)}), which are never unpickled because that runs code; "
            "convert them to safetensors"
        )
    return "has no safetensors files; give a directory with model.safetensors or model.safetensors.index.json"


def _read_config(source_dir: Path) -> dict[str, object]:
    path = source_dir / "config.json"
    if not path.is_file():
        raise ConfigError(f"source={source_dir} has no config.json; give a directory in Hugging Face's layout")
    return _parse_json(_read_small(path), path)


def _read_weight_map(index: Path) -> dict[str, str]:
    weight_map = _parse_json(_read_small(index), index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _broken(index, "no weight_map")
    names: dict[str, str] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise _broken(index, f"{_shown(name)} as a file, which is no safetensors file beside it")
        names[tensor] = name
    return names


def _read_tensors(source_dir: Path, files: list[Path]) -> dict[str, TensorHeader]:
    tensors: dict[str, TensorHeader] = {}
    for path in files:
        header = read_safetensors_header(path)
        twice = sorted(header.keys() & tensors.keys())
        if twice or len(tensors) + len(header) > MAX_TENSORS:
            raise _broken(path, f"{_some(twice)} again" if twice else f"more than {MAX_TENSORS} tensors in all")
        tensors |= header
    if (source_dir / "model.safetensors") in files:
        return tensors
    weight_map = _read_weight_map(source_dir / "model.safetensors.index.json")
    absent = [name for name, file in weight_map.items() if name not in tensors or tensors[name].file.name != file]
    if absent:
        raise _broken(source_dir / "model.safetensors.index.json", f"tensors that its files lack: {_some(absent)}")
    return tensors


@dataclass(frozen=True, slots=True)
class _Placed:
    name: str
    tensor: TensorHeader
    begin: int  # byte offsets in the file's data
    end: int


def _order(placed: _Placed) -> tuple[int, int]:
    return placed.begin, placed.end


def _place(path: Path, data_start_bytes: int, name: str, entry: object) -> _Placed:
    if not isinstance(entry, dict):
        raise _broken(path, f"no description of tensor {_shown(name)}")
    offsets, dtype, shape = entry.get("data_offsets"), entry.get("dtype"), entry.get("shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise _broken(path, f"data_offsets {_shown(offsets)} of tensor {_shown(name)}")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _broken(path, f"dtype {_shown(dtype)} of tensor {_shown(name)}")
    if not isinstance(shape, list) or len(shape) > 16 or not all(_is_count(size) for size in shape):
        raise _broken(path, f"shape {_shown(shape)} of tensor {_shown(name)}")
    num_bytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
    tensor = TensorHeader(path, dtype, tuple(shape), num_bytes, data_start_bytes + offsets[0])
    return _Placed(name, tensor, offsets[0], offsets[1])


def _spec_of(
    source_dir: Path, defaults: Architecture, config: dict[str, object], tensors: dict[str, TensorHeader]
) -> ModelSpec:
    text = _Keys(source_dir / "config.json", config.get("text_config") if defaults.is_nested else config)
    outer = _Keys(source_dir / "config.json", config)
    keys = defaults.keys
    num_heads = text.count(keys.num_heads, defaults.num_heads)
    hidden_size = text.count(keys.hidden_size, defaults.hidden_size)
    architectures = config.get("architectures")
    return ModelSpec(
        source_dir=source_dir,
        model_type=str(config["model_type"]),
        architectures=tuple(str(name) for name in architectures) if isinstance(architectures, list) else (),
        num_layers=text.count(keys.num_layers, defaults.num_layers),
        num_heads=num_heads,
        num_kv_heads=text.count_or_none(keys.num_kv_heads, defaults.num_kv_heads) or num_heads,
        head_dim=text.count_or_none(("head_dim",), defaults.head_dim) or hidden_size // num_heads,
        hidden_size=hidden_size,
        intermediate_size=text.count_or_none(keys.intermediate_size, defaults.intermediate_size) or 4 * hidden_size,
        num_experts=text.count_or_none(keys.num_experts, defaults.num_experts),
        vocab_size=text.count(("vocab_size",), defaults.vocab_size),
        max_position_embeddings=_max_positions(text, defaults),
        is_tied=outer.flag("tie_word_embeddings", text.flag("tie_word_embeddings", defaults.is_tied)),
        dtype=_dtype_of(outer, text, tensors),
        sliding_window=_sliding_window(text, defaults),
        quantization_method=_quantization_method(config) or _quantization_method(text.values),
        tensors=tensors,
        num_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
    )


class _Keys:
    """Typed look-ups in config.json; the first key that is there counts."""

    def __init__(self, path: Path, values: object) -> None:
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: text_config={_shown(values)} is no group of settings; download the file again")
        self._path = path
        self.values: dict[str, object] = values

    def count(self, keys: tuple[str, ...], default: int) -> int:
        return self.count_or_none(keys, default) or default

    def count_or_none(self, keys: tuple[str, ...], default: int | None) -> int | None:
        key = next((key for key in keys if key in self.values), None)
        if key is None:
            return default
        value = self.values[key]
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**40:
            raise ConfigError(f"{self._path}: {key}={_shown(value)} is no positive whole number; download it again")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{self._path}: {key}={_shown(value)} is neither true nor false; write one of them")
        return default if value is None else value


def _max_positions(text: _Keys, defaults: Architecture) -> int:
    positions = text.count(defaults.keys.max_positions, defaults.max_positions)
    rope = text.values.get("rope_parameters") or text.values.get("rope_scaling")
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) != "yarn":
        return positions
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings", positions)
    if isinstance(factor, int | float) and _is_count(original) and 1 <= factor <= 1000:
        return max(positions, int(original * factor))
    return positions


def _sliding_window(text: _Keys, defaults: Architecture) -> int | None:
    if defaults.has_window_switch and not text.flag("use_sliding_window", False):
        return None
    return text.count_or_none(("sliding_window",), defaults.sliding_window)


def _dtype_of(outer: _Keys, text: _Keys, tensors: Mapping[str, TensorHeader]) -> str:
    for values in (outer.values, text.values):
        dtype = values.get("dtype") or values.get("torch_dtype")
        if isinstance(dtype, str):
            return dtype.removeprefix("torch.")
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[SERVED_DTYPES.get(tensor.dtype, tensor.dtype)] += tensor.num_bytes
    return sizes.most_common(1)[0][0] if sizes else "float32"


def _quantization_method(config: Mapping[str, object]) -> str | None:
    section = config.get("quantization_config") or config.get("compression_config")
    if not section:
        return None
    return str(section.get("quant_method", "unknown")) if isinstance(section, dict) else "unknown"


def _check_completeness(spec: ModelSpec) -> None:
    found = {layer_of(name) for name in spec.tensors}
    missing = [str(layer) for layer in range(min(spec.num_layers, MAX_TENSORS)) if layer not in found]
    if missing:
        raise ConfigError(
            f"source={spec.source_dir}: config.json has {spec.num_layers} layers, but no tensors are there for layers "
            f"{_some(missing)}; download the model again"
        )
    if not spec.is_tied and not any(HEAD_PATTERN.search(name) for name in spec.tensors):
        raise ConfigError(
            f"source={spec.source_dir}: tie_word_embeddings=false but there is no lm_head tensor; "
            "give a model for generation, or set tie_word_embeddings to true"
        )


def _read_small(path: Path) -> bytes:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise _broken(path, f"{path.stat().st_size} bytes, more than {MAX_JSON_BYTES}")
    return path.read_bytes()


def _parse_json(text: bytes, path: Path) -> dict[str, object]:
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"broken JSON ({str(error)[:120]})") from error
    if not isinstance(value, dict):
        raise _broken(path, "JSON that is no object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        raise ValueError(f"key {_shown(twice)} twice")
    return values


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _broken(path: Path, what: str) -> ConfigError:
    return ConfigError(f"{path} has {what}: it is damaged or incomplete; download or copy it again")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shown(value: object) -> str:
    return repr(value)[:80]
