"""What a process hands over to a fork server, so that a fork of the server becomes what it was to be.

Nothing is imported that takes time: Ray starts such a process for each of its workers.
"""

import json
import os
import runpy
import socket
import sys
from dataclasses import asdict, dataclass

FORKED = b"forked"
_STREAMS = (0, 1, 2)
_MAX_COMMAND_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """A Python script, and the process that it expects to run in."""

    arguments: list[str]  # the script first
    directory: str
    variables: dict[str, str]


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
    """The command that a process asks for, and its three streams. Raises ValueError when it is none."""
    _, streams, *_ = socket.recv_fds(connection, 1, len(_STREAMS))
    with connection.makefile("rb") as file:
        command = WorkerCommand(**json.loads(file.read(_MAX_COMMAND_BYTES)))
    return command, streams


def run_script(arguments: list[str]) -> None:
    """Run a script in this process, as Python does."""
    sys.argv = arguments
    sys.path[0] = os.path.dirname(arguments[0])
    runpy.run_path(arguments[0], run_name="__main__")
