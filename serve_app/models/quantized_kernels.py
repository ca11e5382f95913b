"""Which kernel multiplies by a quantized weight: told from scheme, shape and device, and written to the log.

Weight-only int8 on CUDA is cast to bfloat16 in each call, in 5 bytes of traffic a weight. torch's `_weight_int8pack_mm`
takes it too, but up to 2.13 one thread sums each output over all inputs.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from serve_app.types.shards import MIN_FLOAT8_CAPABILITY, WeightScheme

logger = logging.getLogger(__name__)

MIN_INT4_CAPABILITY = (8, 0)  # of tinygemm
INT4_INNER_TILES = 8  # of 16 inputs, in tinygemm's layout

_INT4_GROUPS = (32, 64, 128, 256)

KernelName = Literal["rounded_int8", "packed_int8", "cast_int8", "packed_int4", "scaled_float8", "dequantized"]


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """What a kernel depends on of a device."""

    type: str
    capability: tuple[int, int] | None = None  # of a GPU; None: not known

    def __str__(self) -> str:
        return self.type if self.capability is None else f"{self.type} {self.capability[0]}.{self.capability[1]}"


@dataclass(frozen=True, slots=True)
class WeightForm:
    """What a kernel depends on of a weight [N, K]."""

    num_outputs: int
    num_inputs: int
    group_size: int  # inputs that share a scale
    is_plain: bool = True  # no zero points, and inputs in their own order

    @property
    def has_row_scales(self) -> bool:
        """Whether each output has one scale and nothing else."""
        return self.is_plain and self.group_size == self.num_inputs


@dataclass(frozen=True, slots=True)
class KernelDecision:
    """The kernel of a weight; where it is `dequantized`, the one that was not taken and why."""

    name: KernelName
    why_slow: str | None = None


def decide_kernel(scheme: WeightScheme, form: WeightForm, device: DeviceKind) -> KernelDecision:
    """The fastest kernel that takes such a weight."""
    name = _fast_kernel(scheme, device)
    if name is None:
        return KernelDecision("dequantized", f"no kernel takes {scheme.bits} bits on {device.type}")
    reason = _why_not(name, scheme, form, device)
    return KernelDecision(name) if reason is None else KernelDecision("dequantized", f"{name}: {reason}")


class KernelTally:
    """Which kernels the quantized layers of a model have got, for one log line each."""

    def __init__(self) -> None:
        self._num_layers: Counter[tuple[KernelDecision, DeviceKind]] = Counter()
        self._first: dict[KernelDecision, str] = {}

    def add(self, name: str, form: WeightForm, device: DeviceKind, decision: KernelDecision) -> None:
        """Count a layer."""
        self._num_layers[decision, device] += 1
        self._first.setdefault(decision, f"{name} [{form.num_outputs}, {form.num_inputs}] group_size={form.group_size}")

    def log(self) -> None:
        """Tell what has been taken, and what not and why."""
        for (decision, device), count in self._num_layers.items():
            if decision.why_slow is None:
                logger.info("quantized layers device=%s kernel=%s layers=%d", device, decision.name, count)
                continue
            logger.warning(
                "quantized layers are dequantized in each call, which is slow device=%s layers=%d first=%s reason=%s",
                device,
                count,
                self._first[decision],
                decision.why_slow,
            )


def _fast_kernel(scheme: WeightScheme, device: DeviceKind) -> KernelName | None:
    if scheme.is_float:
        return "scaled_float8"
    if scheme.bits == 8 and scheme.has_quantized_inputs:
        return "rounded_int8"
    if scheme.bits == 8:
        return "packed_int8" if device.type == "cpu" else "cast_int8"
    return "packed_int4" if scheme.bits <= 4 else None


def _why_not(name: KernelName, scheme: WeightScheme, form: WeightForm, device: DeviceKind) -> str | None:
    """Why a weight's fast kernel cannot take it; None: it can."""
    if name == "packed_int4":
        return _why_not_int4(form, device)
    if name == "scaled_float8":
        if device.type == "cpu":
            return "CPUs have no kernel for float8"
        if not scheme.has_quantized_inputs:
            return "inputs are not rounded to float8"
        if _is_older(device, MIN_FLOAT8_CAPABILITY):
            return _needed(MIN_FLOAT8_CAPABILITY)
    if not form.has_row_scales:
        return "inputs are in groups with scales of their own" if form.is_plain else "it has zero points or an order"
    sizes = {"packed_int8": (1, 16), "rounded_int8": (1, 1), "cast_int8": (1, 1), "scaled_float8": (16, 16)}
    if device.type != "cpu":
        sizes["rounded_int8"] = (8, 8)
    return _why_not_sizes(form, *sizes[name])


def _why_not_int4(form: WeightForm, device: DeviceKind) -> str | None:
    if form.group_size not in _INT4_GROUPS:
        return f"groups must have one of {', '.join(str(size) for size in _INT4_GROUPS)} inputs"
    if device.type == "cpu":
        return _why_not_sizes(form, 16, 2)
    if _is_older(device, MIN_INT4_CAPABILITY):
        return _needed(MIN_INT4_CAPABILITY)
    return _why_not_sizes(form, 8, 16 * INT4_INNER_TILES)


def _why_not_sizes(form: WeightForm, outputs_of: int, inputs_of: int) -> str | None:
    if form.num_outputs % outputs_of:
        return f"outputs must be a multiple of {outputs_of}"
    return f"inputs must be a multiple of {inputs_of}" if form.num_inputs % inputs_of else None


def _is_older(device: DeviceKind, capability: tuple[int, int]) -> bool:
    return device.capability is not None and device.capability < capability


def _needed(capability: tuple[int, int]) -> str:
    return f"compute capability {capability[0]}.{capability[1]} is needed"
