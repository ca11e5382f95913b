"""Processes as /proc shows them; Linux only, as Ray's GPU nodes are."""

from dataclasses import dataclass
from pathlib import Path

PROCESSES = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """A process that has not ended."""

    pid: int
    session: int
    start_ticks: int  # since boot: tells it from a later process with the same pid


def read_stat(pid: int) -> ProcessStat | None:
    """The process of a pid; None: it has ended."""
    try:
        text = (PROCESSES / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = text[text.rindex(")") + 1 :].split()  # proc(5); the name before it may hold blanks and brackets
    return None if state in "ZX" else ProcessStat(pid, int(fields[2]), int(fields[18]))


def variables_of(pid: int) -> dict[str, str]:
    """The environment that a process of this user was started with; empty when it cannot be read."""
    try:
        content = (PROCESSES / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.decode(errors="surrogateescape").partition("=") for entry in content.split(b"\0") if b"=" in entry)
    return {name: value for name, _, value in pairs}
