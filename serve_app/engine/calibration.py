"""What this CPU does with a model's steps, measured by the engine on small random models, for `rayshard plan`.

Prints a device in the form of planning/devices.yaml. One model is nearly all overhead, one nearly all weights, and two
are nearly all attention: with a head of keys and values for each head of queries, and with one for several.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from serve_app.config.environment import read_environment
from serve_app.engine.calibration_models import CHUNK_TOKENS, MAX_STEPS, CalibrationModel, ModelSize
from serve_app.models.compiled.build import compiled_kernels
from serve_app.models.compiled.library import CompiledKernels

_DTYPES = ("float32", "bfloat16")
_ROWS = (1, 4, 8, 16, 32, 256)  # of inputs that weights are multiplied by
_MAX_SEQUENCES = 32  # steps of more rows are those of a prompt
_GB = 1e9
_NO_TIME_S = 1e-6  # what a difference is at least that a busy machine has made nothing of


@dataclass(frozen=True, slots=True)
class CalibrationSizes:
    """What is measured."""

    small: ModelSize
    large: ModelSize
    attending: ModelSize
    sharing: ModelSize  # its heads share keys and values
    num_attending: int  # sequences: more keys and values than caches of the CPU hold
    context_tokens: int  # of each; more than a chunk of a prompt


SIZES = CalibrationSizes(
    small=ModelSize(16, 64, 256),
    large=ModelSize(3, 1024, 4096),
    attending=ModelSize(4, 64, 256, num_heads=8, num_kv_heads=8),
    sharing=ModelSize(8, 64, 256, num_heads=8, num_kv_heads=2),
    num_attending=16,
    context_tokens=1024,
)


@dataclass(frozen=True, slots=True)
class CpuMeter:
    """How it is measured: the engine's compiled kernels, if any, and a clock."""

    sizes: CalibrationSizes = SIZES
    clock: Callable[[], float] = time.perf_counter
    kernels: CompiledKernels | None = None

    def measure(self) -> dict[str, object]:
        """The device that this CPU is, with this process's threads."""
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            layer_s, sequence_s = self._overheads(root)
            weights = self._weights(root, layer_s, sequence_s)
            attention = self._attention(root)
        return _profile(self.sizes.large.num_numbers, weights, attention, layer_s, sequence_s)

    def _overheads(self, root: Path) -> tuple[float, float]:
        """Seconds of a layer, and of a layer for each sequence."""
        size = self.sizes.small
        small = self._model(root / "small", size, "float32")
        alone_s, together_s = small.step_s(1, 1), small.step_s(_MAX_SEQUENCES, 1)
        sequence_s = max(0.0, (together_s - alone_s) / (_MAX_SEQUENCES - 1)) / size.num_layers
        return max(0.0, alone_s / size.num_layers - sequence_s), sequence_s

    def _weights(self, root: Path, layer_s: float, sequence_s: float) -> dict[str, dict[int, float]]:
        """Seconds for all weights of the large model, by dtype and rows."""
        size = self.sizes.large
        curves: dict[str, dict[int, float]] = {}
        for dtype in _DTYPES:
            large = self._model(root / "large", size, dtype)
            curve: dict[int, float] = {}
            for rows in _ROWS:
                num_sequences, num_tokens = (rows, 1) if rows <= _MAX_SEQUENCES else (1, rows)
                overhead_s = size.num_layers * (layer_s + num_sequences * sequence_s)
                curve[rows] = max(_NO_TIME_S, large.step_s(num_sequences, num_tokens) - overhead_s)
            curves[dtype] = curve
            del large
        return curves

    def _attention(self, root: Path) -> dict[str, dict[int, float]]:
        """Seconds for a GB of keys and values, by dtype and by the queries that each key meets."""
        sizes, curves = self.sizes, dict[str, dict[int, float]]()
        num_more = sizes.context_tokens - CHUNK_TOKENS  # that a chunk of a prompt looks back at
        for dtype in _DTYPES:
            curve: dict[int, float] = {}
            for name in ("attending", "sharing"):
                size: ModelSize = getattr(sizes, name)
                model = self._model(root / name, size, dtype, is_attending=True)
                model.fill(sizes.context_tokens)
                gb_of_token = size.num_kv_numbers * getattr(torch, dtype).itemsize / _GB
                far_s, near_s = (model.step_s(sizes.num_attending, 1, count) for count in (sizes.context_tokens, 0))
                num_read = sizes.num_attending * sizes.context_tokens
                curve[size.num_sharing] = max(_NO_TIME_S, far_s - near_s) / (num_read * gb_of_token)
                far_s, near_s = (model.step_s(1, CHUNK_TOKENS, count) for count in (num_more, 0))
                rows = size.num_sharing * CHUNK_TOKENS
                curve[rows] = max(_NO_TIME_S, far_s - near_s) / (num_more * gb_of_token)
                del model
            curves[dtype] = curve
        return curves

    def _model(self, directory: Path, size: ModelSize, dtype: str, *, is_attending: bool = False) -> CalibrationModel:
        if not directory.exists():
            size.write(directory)
        sizes = self.sizes
        num_sequences = sizes.num_attending if is_attending else _MAX_SEQUENCES
        max_tokens = MAX_STEPS + (sizes.context_tokens if is_attending else CHUNK_TOKENS)
        return CalibrationModel(
            directory, size, dtype, self.clock, self.kernels, num_sequences=num_sequences, max_tokens=max_tokens
        )


def kernels_of_user() -> CompiledKernels | None:
    """Those that a shard of this user on this machine computes with."""
    environment = read_environment()
    return compiled_kernels(environment.compiled_dir, environment.cxx_compiler).kernels


def _profile(
    num_numbers: int,
    weights: dict[str, dict[int, float]],
    attention: dict[str, dict[int, float]],
    layer_s: float,
    sequence_s: float,
) -> dict[str, object]:
    num_bytes = {dtype: num_numbers * getattr(torch, dtype).itemsize for dtype in weights}
    last = _ROWS[-1]
    flops = {dtype: 2 * last * num_numbers / curve[last] for dtype, curve in weights.items()}
    return {
        "type": "cpu",
        "memory_bandwidth": float(num_bytes["float32"] / weights["float32"][1]),
        "flops": {**flops, "float16": min(flops.values())},
        "memory_share": 1.0,
        "compute_share": 1.0,
        "weights_s_per_gb": {
            dtype: {rows: seconds / num_bytes[dtype] * _GB for rows, seconds in curve.items()}
            for dtype, curve in weights.items()
        },
        "attention_s_per_gb": attention,
        "layer_overhead_s": layer_s,
        "sequence_overhead_s": sequence_s,
    }


def main() -> None:
    """Print the device as JSON; the argument: threads of a shard."""
    torch.set_num_threads(int(sys.argv[1]))
    lines = Path("/proc/self/status").read_text().splitlines()
    reserve_kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    print(json.dumps({**CpuMeter(kernels=kernels_of_user()).measure(), "reserve": 1024 * reserve_kib}))


if __name__ == "__main__":
    main()
