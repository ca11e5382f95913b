"""What each process of a server costs while nothing is asked of it: memory, CPU time and wake-ups, from proc(5)."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROCESSES = Path("/proc")
OURS = frozenset(
    {"parent", "child", "shard server", "Gateway", "Router", "Graph", "Preprocessor", "shard", "template worker"}
)

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
_SWITCHES = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)
_REPLICA = "ray::ServeReplica:"
_TITLES = {  # what a worker or an agent of Ray's calls itself, by the beginning
    "ray::Shard": "shard",
    "ray::ServeController": "Serve's controller",
    "ray::ProxyActor": "Serve's proxy",
    "ray::HAProxyManager": "HAProxy's manager",
    "ray::DashboardAgent": "dashboard's agent",
    "ray::RuntimeEnvAgent": "runtime_env's agent",
    "ray::IDLE": "idle worker",
    "ray-dashboard-": "dashboard's modules",
}
_NUM_NAMING = 4  # python -P -m module
_WORDS = {  # what names a program among its first arguments
    "serve_app.cli.serve_child": "child",
    "serve_app.deployments.shard_server": "shard server",
    "serve_app.preprocessing.template_worker": "template worker",
    "gcs_server": "gcs_server",
    "raylet": "raylet",
    "haproxy": "HAProxy",
    "dashboard.py": "dashboard",
    "log_monitor.py": "log monitor",
    "monitor.py": "autoscaler's monitor",
    "rayshard": "parent",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One process so far."""

    role: str
    pss_bytes: int  # its own pages, and its share of those that it shares
    cpu_s: float
    num_waits: int  # times that a thread of it has gone to sleep, and so has been woken


@dataclass(frozen=True, slots=True)
class Cost:
    """All processes of one role."""

    role: str
    num_processes: int
    pss_bytes: int
    cpu_share: float  # of one core
    wakes_per_s: float


def role_of(command: Sequence[str]) -> str:
    """What a process is for, by its command line."""
    title = command[0] if command else ""
    if title.startswith(_REPLICA):
        return title.split()[0].split(":")[-1]
    for beginning, role in _TITLES.items():
        if title.startswith(beginning):
            return role
    if any("multiprocessing." in argument for argument in command):
        return "dashboard's modules"
    words = {Path(argument).name for argument in command[:_NUM_NAMING]}
    return next((role for word, role in _WORDS.items() if word in words), "other")


def take_samples(pids: Iterable[int]) -> dict[int, Sample]:
    """Those of the processes that still live."""
    found: dict[int, Sample] = {}
    for pid in pids:
        try:
            found[pid] = _sample(PROCESSES / str(pid))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def costs_between(before: Mapping[int, Sample], after: Mapping[int, Sample], elapsed_s: float) -> list[Cost]:
    """By role, the largest first, of processes that lived all the time."""
    roles: dict[str, list[tuple[Sample, Sample]]] = {}
    for pid, sample in after.items():
        if pid in before:
            roles.setdefault(sample.role, []).append((before[pid], sample))
    costs = [_cost(role, pairs, elapsed_s) for role, pairs in roles.items()]
    return sorted(costs, key=lambda cost: -cost.pss_bytes)


def total(role: str, costs: Iterable[Cost]) -> Cost:
    """The sum, under a name."""
    found = list(costs)
    return Cost(
        role,
        sum(one.num_processes for one in found),
        sum(one.pss_bytes for one in found),
        sum(one.cpu_share for one in found),
        sum(one.wakes_per_s for one in found),
    )


def _cost(role: str, pairs: Sequence[tuple[Sample, Sample]], elapsed_s: float) -> Cost:
    return Cost(
        role,
        len(pairs),
        sum(later.pss_bytes for _, later in pairs),
        sum(later.cpu_s - earlier.cpu_s for earlier, later in pairs) / elapsed_s,
        sum(later.num_waits - earlier.num_waits for earlier, later in pairs) / elapsed_s,
    )


def _sample(process: Path) -> Sample:
    command = [word for word in (process / "cmdline").read_bytes().decode(errors="replace").split("\0") if word]
    stat = (process / "stat").read_text(errors="replace")
    fields = stat[stat.rindex(")") + 1 :].split()
    num_waits = 0
    for thread in (process / "task").iterdir():
        try:
            num_waits += _number(_SWITCHES, (thread / "status").read_text())
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    pss_kb = _number(_PSS, (process / "smaps_rollup").read_text())
    return Sample(role_of(command), pss_kb << 10, (int(fields[11]) + int(fields[12])) * _TICK_S, num_waits)


def _number(pattern: "re.Pattern[str]", text: str) -> int:
    found = pattern.search(text)
    return int(found[1]) if found else 0
