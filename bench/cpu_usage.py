"""CPU time of everything that a command has started: all processes of its session."""

import time
from collections import defaultdict
from dataclasses import dataclass

import psutil

from serve_app.cli.serve_process import session_members


@dataclass(frozen=True, slots=True)
class ProcessCpu:
    """CPU time of one process so far."""

    role: str  # what it calls itself
    cpu_s: float  # user and system


@dataclass(frozen=True, slots=True)
class CpuSnapshot:
    """CPU time of each process of a session at one moment."""

    taken_s: float
    processes: dict[int, ProcessCpu]  # by pid


@dataclass(frozen=True, slots=True)
class CpuUsage:
    """What a session used between two moments. What a process used that ended in between is not in it."""

    elapsed_s: float
    cpu_s: float
    cpu_s_by_role: dict[str, float]


def take_snapshot(session_id: int) -> CpuSnapshot:
    """The processes of a session now."""
    processes: dict[int, ProcessCpu] = {}
    for pid in session_members(session_id):
        try:
            process = psutil.Process(pid)
            times = process.cpu_times()
            processes[pid] = ProcessCpu(_role_of(process), times.user + times.system)
        except psutil.NoSuchProcess:
            continue
    return CpuSnapshot(time.monotonic(), processes)


def usage_between(before: CpuSnapshot, after: CpuSnapshot) -> CpuUsage:
    """What was used; a process that is new counts from its start."""
    by_role: defaultdict[str, float] = defaultdict(float)
    for pid, process in after.processes.items():
        earlier = before.processes.get(pid)
        by_role[process.role] += process.cpu_s - (earlier.cpu_s if earlier is not None else 0.0)
    return CpuUsage(after.taken_s - before.taken_s, sum(by_role.values()), dict(by_role))


def measure_idle(session_id: int, duration_s: float) -> CpuUsage:
    """What a session uses while nobody asks anything of it."""
    before = take_snapshot(session_id)
    time.sleep(duration_s)
    return usage_between(before, take_snapshot(session_id))


def _role_of(process: psutil.Process) -> str:
    """ray::ServeReplica:… as Ray titles its workers; the name of the program otherwise."""
    command = process.cmdline()
    if command and command[0].startswith("ray::"):
        return command[0].split()[0].removeprefix("ray::")
    return process.name()
