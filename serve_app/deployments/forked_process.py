"""What a process hands over to a fork server, so that a fork of the server becomes what it was to be.

Nothing is imported that takes time: Ray starts such a process for each of its workers.
"""

import json
import os
import resource
import runpy
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass

FORKED = b"forked"
_STREAMS = (0, 1, 2)
_MAX_COMMAND_BYTES = 1 << 20
_OWN_FOLDER = sys.path[0]  # Ray puts another one before it
_OOM_SCORE = "/proc/self/oom_score_adj"


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """A Python script, and the process that it expects to run in."""

    arguments: list[str]  # the script first
    directory: str
    variables: dict[str, str]
    max_open_files: int
    oom_score_adj: str | None  # None: this system has none


_FIELDS = frozenset(WorkerCommand.__slots__)


def own_command(arguments: list[str], variables: Mapping[str, str]) -> WorkerCommand:
    """What has a fork run a script as this process would."""
    max_open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ray raises it after the servers were started
    oom_score_adj = None
    with suppress(OSError), open(_OOM_SCORE) as file:
        oom_score_adj = file.read()  # Ray raises it for each process that it starts
    return WorkerCommand(arguments, os.getcwd(), dict(variables), max_open_files, oom_score_adj)


def take_limits(command: WorkerCommand) -> None:
    """Let this process have what the one that asked was allowed, and go as early as that when memory runs out."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(command.max_open_files, hard), hard))
    if command.oom_score_adj is not None:
        with suppress(OSError), open(_OOM_SCORE, "w") as file:  # to lower it needs a privilege
            file.write(command.oom_score_adj)


def ask_server(path: str, command: WorkerCommand) -> bool:
    """Whether the server at a Unix socket has forked a process for the command, with this one's streams."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            socket.send_fds(connection, [b"\n"], _STREAMS)
            connection.sendall(json.dumps(asdict(command)).encode())
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(len(FORKED)) == FORKED
    except OSError:
        return False  # there is none, or it has ended


def receive_command(connection: socket.socket) -> tuple[WorkerCommand, list[int]]:
    """The command that a process asks for, and its three streams, which are the caller's to close.

    Raises ValueError when it is none, OSError when it does not come in time.
    """
    with ExitStack() as received:
        _, streams, *_ = socket.recv_fds(connection, 1, len(_STREAMS))
        for stream in streams:
            received.callback(os.close, stream)
        with connection.makefile("rb") as file:
            fields = json.loads(file.read(_MAX_COMMAND_BYTES))
        if len(streams) != len(_STREAMS) or not isinstance(fields, dict) or fields.keys() != _FIELDS:
            raise ValueError("not the command of a worker")
        received.pop_all()
    return WorkerCommand(**fields), streams


def run_script(arguments: list[str]) -> None:
    """Run a script in this process, as Python does."""
    sys.argv = arguments
    if not sys.flags.safe_path:
        with suppress(ValueError):
            sys.path.remove(_OWN_FOLDER)
        sys.path.insert(0, os.path.dirname(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")
