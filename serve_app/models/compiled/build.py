"""Compiling the kernels of a step for this CPU, once for each CPU, compiler and version of their source."""

import hashlib
import logging
import platform
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from serve_app.models.compiled.library import CompiledKernels
from serve_app.models.cpu_identity import cpu_identity

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")

_COMPILERS = ("g++", "c++", "clang++")
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC"),
    *(("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
_TIMEOUT_S = 120.0
_OPENMP_NAME = re.compile(r"lib[gi]?omp[^/]*\.so")


@dataclass(frozen=True, slots=True)
class CompiledChoice:
    """The kernels, and how they were had, or why there are none."""

    kernels: CompiledKernels | None
    how: str

    def __str__(self) -> str:
        return self.how if self.kernels is not None else f"none ({self.how})"


class _NoLibrary(Exception):
    """It cannot be compiled here, for the reason that it says."""


def compiled_kernels(directory: Path, compiler: str | None = None) -> CompiledChoice:
    """The kernels, compiled now or earlier into a directory; where that cannot be, the reason.

    compiler: a name or path; None: the first that is found.
    """
    started = time.perf_counter()
    try:
        found = _find_compiler(compiler)
        openmp = _loaded_openmp()
        library = directory / f"{_digest(found, openmp)}.so"
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock")):  # one process of a node compiles for the others
            is_kept = library.exists()
            if not is_kept:
                _compile(found, openmp, library)
        kernels = CompiledKernels(library)
    except (_NoLibrary, OSError) as error:
        return CompiledChoice(None, str(error))
    return CompiledChoice(kernels, "kept" if is_kept else f"in {time.perf_counter() - started:.1f} s")


def _find_compiler(wanted: str | None) -> str:
    names = _COMPILERS if wanted is None else (wanted,)
    found = next((path for name in names if (path := shutil.which(name)) is not None), None)
    if found is None:
        raise _NoLibrary(f"no C++ compiler: {', '.join(names)}")
    return found


def _loaded_openmp() -> Path:
    """The OpenMP library that torch has loaded: two of them in one process would keep threads each."""
    try:
        paths = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    except OSError as error:
        raise _NoLibrary(f"the system does not say which OpenMP torch uses: {error}") from error
    found = next((path for path in paths if _OPENMP_NAME.search(path)), None)
    if found is None:
        raise _NoLibrary("torch was built without OpenMP")
    return Path(found)


def _digest(compiler: str, openmp: Path) -> str:
    """Of all that the library follows from."""
    version = _run([compiler, "--version"])
    cpu = cpu_identity()
    sources = (path.read_text() for path in (SOURCE, *sorted(SOURCE.parent.glob("*.h"))))
    facts = (*sources, version, " ".join(_FLAGS), str(openmp), cpu.name, cpu.instructions)
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:20]


def _compile(compiler: str, openmp: Path, library: Path) -> None:
    """Into a file of another name first, so that what has the library's name is whole."""
    compiled, linked = library.with_suffix(".o"), library.with_suffix(".new")
    _run([compiler, *_FLAGS, "-c", str(SOURCE), "-o", str(compiled)])
    _run([compiler, "-shared", str(compiled), str(openmp), "-o", str(linked)])
    compiled.unlink()
    linked.replace(library)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise _NoLibrary(f"{command[0]} took more than {_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise _NoLibrary(f"{command[0]} failed: {said}")
    return done.stdout
