"""Which kernel multiplies by a model's weights on this CPU: all are timed, once for each CPU, and the fastest is taken.

No list of CPUs tells it: it depends on the instructions, the caches, the threads, and the libraries' versions.
"""

import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

from serve_app.config.environment import read_environment
from serve_app.errors import ConfigError
from serve_app.models.compiled.build import compiled_kernels
from serve_app.models.compiled.library import CompiledKernels
from serve_app.models.cpu_identity import cpu_identity
from serve_app.models.linear_kernels import COMPILED, KERNELS, make_product, why_no_kernel

logger = logging.getLogger(__name__)

STEP_ROWS = (1, 8, 32)  # of inputs, in steps that decode for as many sequences
BATCH_ROWS = (128,)  # in steps of encoders
AUTO = "auto"
REFUSED = 3  # exit status

_CPU = torch.device("cpu")

_NUM_OUTPUTS, _NUM_INPUTS = 2048, 1024
_COLD_BYTES = 192 * 1024**2  # of weights: more than most caches hold
_NUM_COMPUTED = 8  # weights at BATCH_ROWS, where computing takes longer than reading
_NUM_PASSES = 3  # the shortest counts
_LONG_PASS_S = 0.05  # needs no other
_MAX_LOSS = 1.5  # at BATCH_ROWS, of a kernel that is faster in steps
_MIN_GAIN = 1.1  # by which another kernel must be faster than nn.Linear's own

Times = Mapping[str, Sequence[float]]  # by kernel: ms for _COLD_BYTES of weights, at STEP_ROWS and BATCH_ROWS


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """The kernel that is taken, and what it was chosen by; no times where nothing had to be chosen."""

    name: str
    times: Times

    def __str__(self) -> str:
        if not self.times:
            return self.name
        rows = "/".join(str(count) for count in STEP_ROWS + BATCH_ROWS)
        shown = ", ".join(
            f"{kernel} {'/'.join(f'{ms:.1f}' for ms in self.times[kernel])}" for kernel in sorted(self.times)
        )
        return f"{self.name} (ms at {rows} rows: {shown})"


def choose_kernel(
    wanted: str,
    dtype: torch.dtype,
    device: torch.device,
    rows: Sequence[int],
    times_file: Path | None = None,
    compiled: CompiledKernels | None = None,
    compiled_reason: str | None = None,
) -> KernelChoice:
    """The kernel that a setting names, or the fastest at numbers of rows out of STEP_ROWS and BATCH_ROWS.

    times_file: where times are kept; None: in this user's cache. compiled: kernels of steps, if there are any;
    compiled_reason: why there are none, where that is known. Raises ConfigError where this CPU has no such kernel.
    """
    if device.type != "cpu":
        return KernelChoice("torch", {})
    if wanted != AUTO:
        reason = why_no_kernel(wanted, dtype, compiled)
        if reason is not None:
            if wanted == COMPILED and compiled is None and compiled_reason is not None:
                reason += f" ({compiled_reason})"
            raise ConfigError(
                f"engine.linear_kernel={wanted} cannot be had: {reason}; use auto", field="engine.linear_kernel"
            )
        return KernelChoice(wanted, {})
    times = kernel_times(dtype, times_file or read_environment().kernel_times_file, compiled)
    return KernelChoice(fastest(times, rows), times)


def fastest(times: Times, rows: Sequence[int]) -> str:
    """The kernel whose geometric mean over numbers of rows is the least; nn.Linear's own where little is gained.

    One that is much slower than nn.Linear's own at BATCH_ROWS is not taken: prompts are as many rows.
    """
    all_rows = STEP_ROWS + BATCH_ROWS
    columns = [all_rows.index(count) for count in rows]
    last = all_rows.index(BATCH_ROWS[0])
    means = {
        kernel: math.prod(row_times[column] for column in columns) ** (1 / len(columns))
        for kernel, row_times in times.items()
        if row_times[last] <= _MAX_LOSS * times["torch"][last]
    }
    best = min(means, key=means.__getitem__)
    return best if means["torch"] > _MIN_GAIN * means[best] else "torch"


def kernel_times(dtype: torch.dtype, times_file: Path, compiled: CompiledKernels | None = None) -> Times:
    """As measured on this CPU with this process's threads: now, or earlier and kept in a file."""
    key = _key(dtype, compiled)
    try:
        times_file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(times_file.with_suffix(".lock")):  # one process of a node at a time: they share its cores
            kept = _read(times_file)
            if key not in kept:
                kept[key] = measure_kernels(dtype, compiled)
                written = times_file.with_suffix(".new")
                written.write_text(json.dumps(kept, indent=1))
                written.replace(times_file)
            return kept[key]
    except OSError as error:
        logger.info("times of linear kernels are not kept: %s", error)
        return measure_kernels(dtype, compiled)


def measure_kernels(dtype: torch.dtype, compiled: CompiledKernels | None = None) -> dict[str, list[float]]:
    """Milliseconds of each kernel that there is, at STEP_ROWS and BATCH_ROWS; weights [2048, 1024] from memory."""
    num_weights = max(1, _COLD_BYTES // (_NUM_OUTPUTS * _NUM_INPUTS * dtype.itemsize))
    weight = torch.linspace(-0.05, 0.05, _NUM_OUTPUTS * _NUM_INPUTS).view(_NUM_OUTPUTS, _NUM_INPUTS).to(dtype)
    return {
        kernel: _times_of(kernel, weight, num_weights, compiled)
        for kernel in KERNELS
        if why_no_kernel(kernel, dtype, compiled) is None
    }


@torch.inference_mode()
def _times_of(kernel: str, weight: torch.Tensor, num_weights: int, compiled: CompiledKernels | None) -> list[float]:
    products = [make_product(kernel, weight.clone(), compiled) for _ in range(num_weights)]
    times = []
    for num_rows in STEP_ROWS + BATCH_ROWS:
        inputs = torch.linspace(-1, 1, num_rows * _NUM_INPUTS).view(num_rows, _NUM_INPUTS).to(weight.dtype)
        measured = products[:_NUM_COMPUTED] if num_rows in BATCH_ROWS else products
        passes_s: list[float] = []
        while len(passes_s) < _NUM_PASSES and not (passes_s and passes_s[-1] > _LONG_PASS_S):
            started = time.perf_counter()
            for product in measured:
                product.multiply(inputs, None)
            passes_s.append(time.perf_counter() - started)
        times.append(round(1000 * min(passes_s) * num_weights / len(measured), 2))
    return times


def _key(dtype: torch.dtype, compiled: CompiledKernels | None) -> str:
    """Of what the times depend on."""
    cpu = cpu_identity()
    digest = hashlib.sha256(f"{cpu.instructions} {torch.backends.cpu.get_cpu_capability()}".encode()).hexdigest()[:12]
    own = "" if compiled is None else f", kernels {compiled.digest}"
    return f"{cpu.name} {digest}, torch {torch.__version__}, {torch.get_num_threads()} threads, {dtype}{own}"


def _read(times_file: Path) -> dict[str, dict[str, list[float]]]:
    """What is kept; nothing where the file is broken."""
    try:
        kept = json.loads(times_file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def main() -> None:
    """Print the kernel for each argument "DTYPE:steps:THREADS:COMPILE:KERNEL" or "DTYPE:batches:THREADS:off:KERNEL".

    Ends with REFUSED and a sentence where one that is named cannot be had.
    """
    environment = read_environment()
    for argument in sys.argv[1:]:
        dtype, use, num_threads, compile_steps, wanted = argument.split(":")
        torch.set_num_threads(int(num_threads))
        rows = {"steps": STEP_ROWS, "batches": BATCH_ROWS}[use]
        own = None if compile_steps == "off" else compiled_kernels(environment.compiled_dir, environment.cxx_compiler)
        kernels, reason = (None, None) if own is None else (own.kernels, own.how)
        try:
            choice = choose_kernel(wanted, getattr(torch, dtype), _CPU, rows, None, kernels, reason)
        except ConfigError as error:
            print(error.message, file=sys.stderr)
            sys.exit(REFUSED)
        owners = {"steps": "generators", "batches": "encoders"}[use]
        print(f"linear layers of {owners} in {dtype}, threads={num_threads}: {choice}")


if __name__ == "__main__":
    main()
