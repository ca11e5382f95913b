"""`quantization_config` of GPTQ (arXiv:2210.17323) and AWQ (arXiv:2306.00978), whose weights are words of `qweight`.

Keys as AutoGPTQ, GPTQModel (https://github.com/ModelCloud/GPTQModel) and AutoAWQ write them; no torch.
"""

from collections.abc import Mapping
from pathlib import Path

from serve_app.checkpoints.checkpoint_json import shown
from serve_app.checkpoints.quantized_modules import (
    CheckpointQuantization,
    Target,
    WordLayout,
    pattern_target,
    read_targets,
)
from serve_app.errors import ConfigError
from serve_app.types.shards import WeightScheme

_HEAD = Target("lm_head")
_LINEAR = (Target("Linear"),)
_GPTQ_BITS = (2, 3, 4, 8)
_GPTQ_LAYOUTS: dict[str, WordLayout] = {"gptq": "gptq", "gptq_v2": "gptq_v2"}
_AWQ_LAYOUTS: dict[str, WordLayout] = {"gemm": "awq_gemm", "gemv": "awq_gemv"}
_OVERRIDES = ("bits", "group_size", "desc_act", "sym")  # that a rule of `dynamic` may give, and that say what is stored


def read_gptq(section: Mapping[str, object], path: Path) -> CheckpointQuantization:
    """What the section says. Raises ConfigError where it is not served."""
    layout_name = section.get("checkpoint_format") or section.get("format") or "gptq"
    layout = _GPTQ_LAYOUTS.get(str(layout_name).lower())
    if layout is None or section.get("is_marlin_format"):
        told = shown("marlin" if layout else layout_name)
        raise ConfigError(f"{path}: checkpoint_format={told} is not served; use {' or '.join(_GPTQ_LAYOUTS)}")
    if (section.get("pack_dtype") or "int32") not in ("int32", "torch.int32"):
        raise ConfigError(f"{path}: pack_dtype={shown(section.get('pack_dtype'))} is not served; use int32")
    if section.get("adapter"):
        raise ConfigError(f"{path}: quantization_config.adapter is not served; merge it, or save the model without it")
    rules = [_rule(pattern, given, section, path) for pattern, given in _dynamic(section, path).items()]
    own = [section, *(given for given in _dynamic(section, path).values() if isinstance(given, dict))]
    has_order = any(bool(one.get("desc_act")) and one.get("group_size", 0) != -1 for one in own)
    ignored = () if section.get("lm_head") is True else (_HEAD,)
    groups = (*rules, (_LINEAR, _gptq_scheme(section, str(path))))
    return CheckpointQuantization("gptq", groups, ignored, layout, has_order)


def _dynamic(section: Mapping[str, object], path: Path) -> Mapping[str, object]:
    given = section.get("dynamic") or {}
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: quantization_config.dynamic={shown(given)} is not an object; quantize again")
    return given


def _rule(
    pattern: str, given: object, section: Mapping[str, object], path: Path
) -> tuple[tuple[Target, ...], WeightScheme | None]:
    """Modules by a pattern: with `-:` before it they are not quantized, else with settings of their own."""
    where = f"{path}: quantization_config.dynamic[{shown(pattern)}]"
    if pattern.startswith("-:"):
        return (pattern_target(pattern[2:], where),), None
    if not isinstance(given, dict):
        raise ConfigError(f"{where}={shown(given)} is not an object; quantize the model again")
    overrides = {key: value for key, value in given.items() if key in _OVERRIDES}
    return (pattern_target(pattern.removeprefix("+:"), where),), _gptq_scheme({**section, **overrides}, where)


def _gptq_scheme(section: Mapping[str, object], where: str) -> WeightScheme:
    bits, group_size = section.get("bits"), section.get("group_size", 128)
    if type(bits) is not int or bits not in _GPTQ_BITS or not _is_group(group_size):
        known = ", ".join(str(one) for one in _GPTQ_BITS)
        raise ConfigError(
            f"{where}: gptq with {shown(bits)} bits in groups of {shown(group_size)} is not served; use one of {known}"
        )
    return WeightScheme(bits=bits, group_size=_group(group_size))


def read_awq(section: Mapping[str, object], path: Path) -> CheckpointQuantization:
    """What the section says. Raises ConfigError where it is not served."""
    bits, group_size = section.get("bits", section.get("w_bit")), section.get("group_size", section.get("q_group_size"))
    if bits != 4 or not _is_group(group_size):
        raise ConfigError(
            f"{path}: awq with {shown(bits)} bits in groups of {shown(group_size)} is not served; use 4 bits"
        )
    version = section.get("version") or section.get("checkpoint_format") or section.get("format") or "gemm"
    layout = _AWQ_LAYOUTS.get(str(version).lower())
    if layout is None:
        raise ConfigError(f"{path}: awq version={shown(version)} is not served; use {' or '.join(_AWQ_LAYOUTS)}")
    ignored = read_targets(section.get("modules_to_not_convert") or [], str(path))
    head = () if section.get("lm_head") is True else (_HEAD,)
    scheme = WeightScheme(bits=4, group_size=_group(group_size))
    return CheckpointQuantization("awq", ((_LINEAR, scheme),), (*ignored, *head), layout)


def _is_group(value: object) -> bool:
    return type(value) is int and (value >= 1 or value == -1)


def _group(value: object) -> int | None:
    """-1 is a scale for all inputs."""
    return value if isinstance(value, int) and value > 0 else None
