"""Asks a process that has torch which kernel of linear layers this CPU's shards will take."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import serve_app
from serve_app.config.model import ModelConfig

_MAX_S = 120.0
_MODULE = "serve_app.engine.kernel_choice"


def describe_kernels(models: Sequence[tuple[ModelConfig, str]]) -> list[str]:
    """A line for each dtype that models on CPU are served in, if their kernel is chosen here; plain modules have none.

    models: with the dtype of each.
    """
    asked = {
        f"{dtype}:{_use(config)}:{_num_threads(config)}:{_compile(config)}": None
        for config, dtype in models
        if config.device.type == "cpu" and config.architecture is None and config.engine.linear_kernel == "auto"
    }
    if not asked:
        return []
    assert serve_app.__file__ is not None
    root = Path(serve_app.__file__).parents[1]
    try:
        ended = subprocess.run(
            [sys.executable, "-m", _MODULE, *asked],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=_MAX_S,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        return [f"linear layers: not known which kernel is the fastest here ({error})"]
    return ended.stdout.splitlines()


def _use(config: ModelConfig) -> str:
    return "steps" if config.is_generative else "batches"


def _compile(config: ModelConfig) -> str:
    """Steps have kernels of their own, batches have not."""
    return config.engine.compile if config.is_generative else "off"


def _num_threads(config: ModelConfig) -> int:
    """Of a shard, when all of a copy are on this machine."""
    return config.device.cpu_threads or max(1, len(os.sched_getaffinity(0)) // config.parallel.num_shards)
