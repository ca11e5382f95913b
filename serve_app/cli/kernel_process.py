"""Asks a process that has torch which kernel of linear layers this CPU's shards will take."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import serve_app
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError

_MAX_S = 300.0  # a compiler alone may take 120
_MODULE = "serve_app.engine.kernel_choice"
_ASKED = ("auto", "compiled")  # of others, what this CPU has does not depend on what is compiled
_REFUSED = 3  # its exit status where a kernel that is named cannot be had; its own name for it needs torch


def describe_kernels(models: Sequence[tuple[ModelConfig, str]]) -> list[str]:
    """A line for each dtype that models on CPU are served in, if their kernel is chosen here; plain modules have none.

    models: with the dtype of each. Raises ConfigError where engine.linear_kernel=compiled cannot be had, as loading
    does.
    """
    asked = {
        f"{dtype}:{_use(config)}:{_num_threads(config)}:{_compile(config)}:{config.engine.linear_kernel}": None
        for config, dtype in models
        if config.device.type == "cpu" and config.architecture is None and config.engine.linear_kernel in _ASKED
    }
    if not asked:
        return []
    try:
        status, lines, errors = run_group([sys.executable, "-m", _MODULE, *asked], _MAX_S)
    except (subprocess.TimeoutExpired, OSError) as error:
        return [f"linear layers: not known which kernel is the fastest here ({error})"]
    last = errors[-1] if errors else f"it ended with status {status}"
    if status == _REFUSED:
        raise ConfigError(last, field="engine.linear_kernel")
    return [f"linear layers: not known which kernel is the fastest here ({last})"] if status else lines


def run_group(command: Sequence[str], max_s: float) -> tuple[int, list[str], list[str]]:
    """Exit status, lines of output and of errors of a command, which runs at this package's root.

    Raises TimeoutExpired once it and all that it has started, a compiler too, are ended.
    """
    assert serve_app.__file__ is not None
    root, pipe = Path(serve_app.__file__).parents[1], subprocess.PIPE
    with subprocess.Popen(command, cwd=root, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            output, errors = process.communicate(timeout=max_s)
        except BaseException:
            with suppress(ProcessLookupError):  # it may have ended meanwhile
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output.splitlines(), errors.splitlines()


def _use(config: ModelConfig) -> str:
    return "steps" if config.is_generative else "batches"


def _compile(config: ModelConfig) -> str:
    """Steps have kernels of their own, batches have not."""
    return config.engine.compile if config.is_generative else "off"


def _num_threads(config: ModelConfig) -> int:
    """Of a shard, when all of a copy are on this machine."""
    return config.device.cpu_threads or max(1, len(os.sched_getaffinity(0)) // config.parallel.num_shards)
