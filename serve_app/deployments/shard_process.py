"""What Ray starts in place of Python for a shard on CPU: has the shard server fork it, or runs it itself.

`python -m serve_app.deployments.shard_process SOCKET SCRIPT ARGUMENT...`. Nothing is imported that takes time.
"""

import json
import os
import runpy
import socket
import sys
from collections.abc import Mapping
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


def main(arguments: list[str], variables: Mapping[str, str]) -> None:
    """Have a script run: `arguments` are the server's socket, the script and its arguments."""
    path, *command = arguments
    if not ask_server(path, WorkerCommand(command, os.getcwd(), dict(variables))):
        run_script(command)


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


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
