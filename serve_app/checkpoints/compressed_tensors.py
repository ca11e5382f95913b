"""`quantization_config` of compressed-tensors (https://github.com/vllm-project/compressed-tensors); no torch."""

from collections.abc import Mapping
from pathlib import Path

from serve_app.checkpoints.checkpoint_json import shown
from serve_app.checkpoints.quantized_modules import CheckpointQuantization, read_targets
from serve_app.errors import ConfigError
from serve_app.types.shards import WeightScheme

_FORMATS = ("int-quantized", "pack-quantized", "float-quantized", "naive-quantized")


def read_compressed_tensors(section: Mapping[str, object], path: Path) -> CheckpointQuantization | None:
    """What the section says; None: its weights are stored as they are. Raises ConfigError where it is not served."""
    for key in ("kv_cache_scheme", "transform_config"):
        if section.get(key):
            raise ConfigError(f"{path}: quantization_config.{key} is not served; compress the model without it")
    is_sparse = _check_sparsity(section.get("sparsity_config"), path)
    groups = section.get("config_groups")
    if is_sparse and not groups:
        return None
    if not isinstance(groups, dict) or not groups:
        raise ConfigError(f"{path}: quantization_config has no config_groups; compress the model again")
    if section.get("format") != "mixed-precision":
        _check_format(section.get("format"), str(path))
    read = []
    for name, group in groups.items():
        where = f"{path}: quantization_config.config_groups.{name[:64]}"
        if not isinstance(group, dict):
            raise ConfigError(f"{where} is not an object; compress the model again")
        if group.get("format") is not None:
            _check_format(group["format"], where)
        read.append((read_targets(group.get("targets"), where), _scheme(group, where)))
    ignored = read_targets(section.get("ignore") or [], str(path))
    return CheckpointQuantization("compressed-tensors", tuple(read), ignored, has_input_order=_has_order(groups))


def _has_order(groups: Mapping[str, Mapping[str, Mapping[str, object]]]) -> bool:
    """Whether a weight may have its inputs in an order of its own."""
    return any(group["weights"].get("actorder") in ("group", "dynamic", True) for group in groups.values())


def _check_sparsity(given: object, path: Path) -> bool:
    """Whether there are settings of sparsity. Dense ones say that zeros are stored like other numbers."""
    if not given:
        return False
    form = given.get("format") if isinstance(given, dict) else given
    if form != "dense":
        raise ConfigError(
            f"{path}: quantization_config.sparsity_config.format={shown(form)} is not served; save the model with "
            "dense weights"
        )
    return True


def _check_format(given: object, where: str) -> None:
    if given not in _FORMATS:
        raise ConfigError(f"{where}: format={shown(given)} is not served; use one of {', '.join(_FORMATS)}")


def _scheme(group: Mapping[str, object], where: str) -> WeightScheme:
    weights, inputs = group.get("weights"), group.get("input_activations")
    if group.get("output_activations"):
        raise ConfigError(f"{where}.output_activations is not served; quantize inputs only")
    if not isinstance(weights, dict):
        raise ConfigError(f"{where}.weights is missing; compress the model again")
    kind, bits = weights.get("type"), weights.get("num_bits")
    is_known = (kind == "int" and bits in (2, 3, 4, 8)) or (kind == "float" and bits == 8)
    if not is_known or type(bits) is not int:
        raise ConfigError(f"{where}: weights of {shown(bits)} bits, type {shown(kind)}, are not served; use int 4 or 8")
    if weights.get("dynamic"):
        raise ConfigError(f"{where}: dynamic weights are not served; compress the model again")
    block_rows, group_size = _grouping(weights, where)
    has_quantized, has_static = _inputs(inputs, weights, group_size if block_rows else None, where)
    return WeightScheme(
        bits=bits,
        is_float=kind == "float",
        group_size=group_size,
        has_quantized_inputs=has_quantized,
        block_rows=block_rows,
        has_static_inputs=has_static,
    )


def _grouping(weights: Mapping[str, object], where: str) -> tuple[int | None, int | None]:
    """Outputs and inputs that share a scale; None: one output, all inputs."""
    strategy = weights.get("strategy")
    if strategy == "block" and weights.get("type") == "float":
        return read_block(weights.get("block_structure"), f"{where}: block_structure")
    if strategy in ("channel", "tensor"):
        return None, None
    group_size = weights.get("group_size")
    if strategy != "group" or not isinstance(group_size, int) or not _is_size(group_size):
        raise ConfigError(f"{where}: strategy={shown(strategy)} of weights is not served; use channel or group")
    return None, group_size


def _inputs(inputs: object, weights: Mapping[str, object], block: int | None, where: str) -> tuple[bool, bool]:
    """Whether inputs are quantized, and whether by a scale that is stored; `block`: inputs in a block of weights."""
    if not inputs:
        return False, False
    if not isinstance(inputs, dict):
        raise ConfigError(f"{where}.input_activations is not an object; compress the model again")
    is_float = weights.get("type") == "float"
    has_bits = inputs.get("num_bits") == 8 == weights.get("num_bits") and inputs.get("type", "int") == weights["type"]
    strategy, is_dynamic = inputs.get("strategy"), inputs.get("dynamic")
    if block is not None:
        is_known = is_dynamic is True and strategy == "group" and inputs.get("group_size") == block
    elif is_float:
        # One scale for all rows of a step would make them depend on each other; each gets its own, as in vLLM.
        is_known = strategy == "tensor" or (strategy == "token" and is_dynamic is True)
    else:
        is_known = strategy == "token" and is_dynamic is True
    if not has_bits or not is_known or inputs.get("symmetric") is False or type(is_dynamic or False) is not bool:
        kinds = "for each token, or for the whole tensor" if is_float else "dynamic, for each token"
        raise ConfigError(
            f"{where}.input_activations is not served; quantize inputs to 8 bits like the weights, symmetric, {kinds}"
        )
    return True, not is_dynamic


def read_block(given: object, where: str) -> tuple[int, int]:
    """Outputs and inputs of a block that shares a scale. Raises ConfigError."""
    if not isinstance(given, list) or len(given) != 2 or not all(_is_size(size) for size in given):
        raise ConfigError(f"{where}={shown(given)} is not a pair of sizes; compress the model again")
    return given[0], given[1]


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 1
