"""What tells this CPU from others."""

from dataclasses import dataclass
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class CpuIdentity:
    """Virtual CPUs may share a name, so their instructions are part of it."""

    name: str
    instructions: str


def cpu_identity() -> CpuIdentity:
    """Of the CPU that this process runs on; "CPU" and no instructions where the system does not say."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    facts = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    return CpuIdentity(facts.get("model name", "CPU"), facts.get("flags", facts.get("Features", "")))
