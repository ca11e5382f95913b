"""How a checkpoint's weights are quantized, from `quantization_config` in its config.json; no torch.

compressed-tensors: https://github.com/vllm-project/compressed-tensors
GPTQ and AWQ: the `quantization_config` that transformers documents for each.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.checkpoints.checkpoint_json import shown
from serve_app.errors import ConfigError
from serve_app.types.shards import WeightScheme

# Tensors that accompany a quantized weight, by the ends of their names.
COMPANIONS = ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "qzeros", "scales", "g_idx")
PACKED = ("weight_packed", "qweight")
_FORMATS = ("int-quantized", "pack-quantized", "float-quantized", "naive-quantized")
_STRATEGIES = ("channel", "group", "tensor")
_KINDS = {"Linear": "linear", "Embedding": "embedding"}


@dataclass(frozen=True, slots=True)
class Target:
    """Which modules: those of a class, of a name, or whose name a pattern finds."""

    text: str

    def matches(self, module: str, kind: str) -> bool:
        """Whether a module of this name and kind (`linear` or `embedding`) is meant."""
        if self.text.startswith("re:"):
            return re.match(self.text[3:], module) is not None
        return _KINDS.get(self.text) == kind or module == self.text or module.endswith(f".{self.text}")


@dataclass(frozen=True, slots=True)
class CheckpointQuantization:
    """Which modules of a checkpoint are quantized, and how."""

    method: str  # compressed-tensors, gptq or awq
    groups: tuple[tuple[tuple[Target, ...], WeightScheme], ...]
    ignored: tuple[Target, ...]

    def scheme_of(self, module: str, kind: str) -> WeightScheme | None:
        """The scheme of a module's weight; None: it is stored as it is."""
        if any(target.matches(module, kind) for target in self.ignored):
            return None
        for targets, scheme in self.groups:
            if any(target.matches(module, kind) for target in targets):
                return scheme
        return None


def read_quantization(config: Mapping[str, object], path: Path) -> CheckpointQuantization | None:
    """The quantization that `config`, the content of `path`, describes. Raises ConfigError where it is not served."""
    section = config.get("quantization_config") or config.get("compression_config")
    if not section:
        return None
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: quantization_config={shown(section)} is not an object; download the model again")
    method = section.get("quant_method")
    if method == "compressed-tensors":
        return _read_compressed_tensors(section, path)
    if method in ("gptq", "awq"):
        return _read_packed_method(method, section, path)
    raise ConfigError(
        f"{path}: quant_method={shown(method)} is not served; give a checkpoint of compressed-tensors, gptq or awq, or "
        "the unquantized model with `quantization:` in the Serve file"
    )


def _read_compressed_tensors(section: Mapping[str, object], path: Path) -> CheckpointQuantization:
    for key in ("sparsity_config", "kv_cache_scheme", "transform_config"):
        if section.get(key):
            raise ConfigError(f"{path}: quantization_config.{key} is not served; compress the model without it")
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ConfigError(f"{path}: quantization_config has no config_groups; compress the model again")
    if section.get("format") not in _FORMATS and section.get("format") != "mixed-precision":
        known = ", ".join(_FORMATS)
        raise ConfigError(f"{path}: format={shown(section.get('format'))} is not served; use one of {known}")
    read = []
    for name, group in groups.items():
        where = f"{path}: quantization_config.config_groups.{name[:64]}"
        if not isinstance(group, dict):
            raise ConfigError(f"{where} is not an object; compress the model again")
        read.append((_targets(group.get("targets"), where), _scheme(group, where)))
    return CheckpointQuantization("compressed-tensors", tuple(read), _targets(section.get("ignore") or [], str(path)))


def _scheme(group: Mapping[str, object], where: str) -> WeightScheme:
    weights, inputs = group.get("weights"), group.get("input_activations")
    if group.get("output_activations"):
        raise ConfigError(f"{where}.output_activations is not served; quantize inputs only")
    if not isinstance(weights, dict):
        raise ConfigError(f"{where}.weights is missing; compress the model again")
    kind, bits, strategy = weights.get("type"), weights.get("num_bits"), weights.get("strategy")
    group_size = weights.get("group_size") if strategy == "group" else None
    is_known = (kind == "int" and bits in (2, 3, 4, 8)) or (kind == "float" and bits == 8)
    if not is_known or type(bits) is not int:
        raise ConfigError(f"{where}: weights of {shown(bits)} bits, type {shown(kind)}, are not served; use int 4 or 8")
    if strategy not in _STRATEGIES or (strategy == "group" and (type(group_size) is not int or group_size < 1)):
        raise ConfigError(f"{where}: strategy={shown(strategy)} of weights is not served; use channel or group")
    if weights.get("dynamic"):
        raise ConfigError(f"{where}: dynamic weights are not served; compress the model again")
    return WeightScheme(
        bits=bits,
        is_float=kind == "float",
        group_size=group_size if isinstance(group_size, int) else None,
        has_quantized_inputs=_has_quantized_inputs(inputs, bits, where),
    )


def _has_quantized_inputs(inputs: object, bits: int, where: str) -> bool:
    if not inputs:
        return False
    if not isinstance(inputs, dict):
        raise ConfigError(f"{where}.input_activations is not an object; compress the model again")
    is_known = (
        inputs.get("num_bits") == 8 == bits and inputs.get("dynamic") is True and inputs.get("strategy") == "token"
    )
    if not is_known or inputs.get("symmetric") is False:
        raise ConfigError(
            f"{where}.input_activations is not served; quantize inputs to 8 bits, symmetric, dynamic, for each token"
        )
    return True


def _targets(given: object, where: str) -> tuple[Target, ...]:
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise ConfigError(f"{where}: {shown(given)} is not a list of modules; compress the model again")
    for one in given:
        if one.startswith("re:"):
            _check_pattern(one[3:], where)
    return tuple(Target(one) for one in given)


def _check_pattern(pattern: str, where: str) -> None:
    """A pattern that runs in linear time: no repetition of a repetition."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{where}: {shown(pattern)} is not a pattern ({error}); compress the model again") from error
    if len(pattern) > 256 or re.search(r"[+*}]\)*[+*{]", pattern):
        raise ConfigError(f"{where}: the pattern {shown(pattern)} repeats a repetition; write it without")


def _read_packed_method(method: str, section: Mapping[str, object], path: Path) -> CheckpointQuantization:
    bits, group_size = section.get("bits", section.get("w_bit")), section.get("group_size", section.get("q_group_size"))
    if bits != 4 or type(group_size) is not int or (group_size < 1 and group_size != -1):
        raise ConfigError(
            f"{path}: {method} with {shown(bits)} bits in groups of {shown(group_size)} is not served; use 4 bits"
        )
    layout = section.get("checkpoint_format", "gptq")
    if method == "gptq" and layout != "gptq":
        raise ConfigError(f"{path}: checkpoint_format={shown(layout)} is not served; use gptq")
    if method == "awq" and str(section.get("version", "gemm")).lower() != "gemm":
        raise ConfigError(f"{path}: awq version={shown(section.get('version'))} is not served; use gemm")
    scheme = WeightScheme(bits=4, group_size=None if group_size == -1 else group_size)
    ignored = _targets(section.get("modules_to_not_convert") or [], str(path))
    return CheckpointQuantization(method, (((Target("Linear"),), scheme),), (*ignored, Target("lm_head")))
