"""The compiled kernels, for tests: compiled once for this machine, outside the user's cache."""

import os
import tempfile
from functools import cache
from pathlib import Path

import pytest

from serve_app.models.compiled.build import CompiledChoice, compiled_kernels
from serve_app.models.compiled.library import CompiledKernels


@cache
def _choice() -> CompiledChoice:
    return compiled_kernels(Path(tempfile.gettempdir()) / f"rayshard-tests-{os.getuid()}" / "compiled")


def kernels_or_skip() -> CompiledKernels:
    """Skips the test where there is no compiler; what a compiler does not make of them is a failure."""
    choice = _choice()
    if choice.kernels is None and choice.how.startswith("no C++ compiler"):
        pytest.skip(f"no compiled kernels: {choice.how}")
    assert choice.kernels is not None, choice.how
    return choice.kernels


def int8_kernels_or_skip() -> CompiledKernels:
    """The same where the CPU has the instructions for int8."""
    kernels = kernels_or_skip()
    if not kernels.has_int8:
        pytest.skip("the CPU has no AVX-512 VNNI")
    return kernels
