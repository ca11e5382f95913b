"""`quantization_config` of `quant_method: fp8`, as vLLM, transformers and DeepSeek write it; no torch.

Weights of float8_e4m3 with one scale each, or one for each block (DeepSeek-V3, arXiv:2412.19437).
"""

from collections.abc import Mapping
from pathlib import Path

from serve_app.checkpoints.checkpoint_json import shown
from serve_app.checkpoints.compressed_tensors import read_block
from serve_app.checkpoints.quantized_modules import CheckpointQuantization, Target, read_targets
from serve_app.errors import ConfigError
from serve_app.types.shards import WeightScheme


def read_float8(section: Mapping[str, object], path: Path) -> CheckpointQuantization:
    """What the section says. Raises ConfigError where it is not served."""
    for key in ("kv_cache_scheme", "modules_to_convert"):
        if section.get(key):
            raise ConfigError(f"{path}: quantization_config.{key} is not served; quantize the model without it")
    if section.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise ConfigError(f"{path}: fmt={shown(section.get('fmt'))} is not served; use e4m3")
    inputs = section.get("activation_scheme", "dynamic")
    if inputs not in ("dynamic", "static"):
        raise ConfigError(f"{path}: activation_scheme={shown(inputs)} is not served; use dynamic or static")
    block_rows, block_columns = None, None
    if section.get("weight_block_size") is not None:
        block_rows, block_columns = read_block(section["weight_block_size"], f"{path}: weight_block_size")
        if inputs == "static":
            raise ConfigError(f"{path}: activation_scheme=static has no form beside weight_block_size; use dynamic")
    scheme = WeightScheme(
        bits=8,
        is_float=True,
        group_size=block_columns,
        has_quantized_inputs=True,
        block_rows=block_rows,
        has_static_inputs=inputs == "static",
    )
    ignored = section.get("modules_to_not_convert") or section.get("ignored_layers") or []
    return CheckpointQuantization("fp8", (((Target("Linear"),), scheme),), read_targets(ignored, str(path)))
