"""How a checkpoint's weights are quantized, from config.json's `quantization_config` or a file beside it; no torch."""

from collections.abc import Mapping
from pathlib import Path

from serve_app.checkpoints.checkpoint_json import read_json, shown
from serve_app.checkpoints.compressed_tensors import read_compressed_tensors
from serve_app.checkpoints.float8_quantization import read_float8
from serve_app.checkpoints.quantized_modules import CheckpointQuantization
from serve_app.checkpoints.word_quantization import read_awq, read_gptq
from serve_app.errors import ConfigError

# Where AutoGPTQ and AutoAWQ have kept the settings of weights in words, before config.json had them.
_SIDE_FILES = ("quantize_config.json", "quant_config.json")
_READERS = {
    "compressed-tensors": read_compressed_tensors,
    "gptq": read_gptq,
    "awq": read_awq,
    "fp8": read_float8,
}


def read_quantization(
    config: Mapping[str, object], path: Path, *, has_words: bool = False
) -> CheckpointQuantization | None:
    """The quantization that `config`, the content of `path`, describes. Raises ConfigError where it is not served.

    has_words: whether weights are stored as `qweight`, whose settings a file beside config.json may hold.
    """
    section = config.get("quantization_config") or config.get("compression_config")
    if not section and has_words:
        path, section = _read_side_file(path)
    if not section:
        return None
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: quantization_config={shown(section)} is not an object; download the model again")
    method = section.get("quant_method")
    if method is None:  # as old files have it
        method = _method_of(section, has_words=has_words)
    reader = _READERS.get(str(method).lower())
    if reader is None:
        raise ConfigError(
            f"{path}: quant_method={shown(method)} is not served; give a checkpoint of {', '.join(_READERS)}, or the "
            "unquantized model with `quantization:` in the Serve file"
        )
    return reader(section, path)


def _read_side_file(path: Path) -> tuple[Path, object]:
    """The settings beside config.json, and the file that has them."""
    found = next((path.parent / name for name in _SIDE_FILES if (path.parent / name).is_file()), None)
    return (path, None) if found is None else (found, read_json(found))


def _method_of(section: Mapping[str, object], *, has_words: bool) -> str | None:
    """The method of settings that name none, by what else they have."""
    if has_words:
        return "awq" if {"w_bit", "q_group_size", "zero_point"} & section.keys() else "gptq"
    return "compressed-tensors" if {"config_groups", "sparsity_config"} & section.keys() else None
