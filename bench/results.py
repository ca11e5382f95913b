"""Where and when a benchmark ran, and the file that keeps what it found."""

import os
import platform
import re
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("results.md")
_PACKAGES = ("rayshard", "ray", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a result depends on beside our code."""

    cpu: str
    num_cores: int
    load: float  # average over the minute before the run: what others were doing
    versions: str


def describe_machine() -> Machine:
    """This machine, now."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    return Machine(
        cpu=found[1] if found else platform.machine(),
        num_cores=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        versions=f"Python {platform.python_version()}, {versions}",
    )


def record(title: str, machine: Machine, table: str, path: Path = RESULTS) -> None:
    """Append a run to the file."""
    text = path.read_text() if path.exists() else "# Results of the benchmarks\n"
    section = (
        f"\n## {title}, {date.today()}\n\n{machine.num_cores} cores of {machine.cpu}, load {machine.load:.2f} before "
        f"the run; {machine.versions}\n\n{table}\n"
    )
    path.write_text(text + section)
