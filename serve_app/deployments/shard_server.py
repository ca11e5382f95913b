"""Forks the processes of shards on CPU from one that has imported torch and transformers: 5 s of CPU and 200 MB, once.

Ray starts `shard_process` for such a shard, which hands its command over to this server, if there is one.
"""

import gc
import importlib
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from serve_app.deployments.shard_process import FORKED, WorkerCommand, receive_command, run_script


def main(path: Path, engines: list[str]) -> None:
    """Serve processes that run one of these engines."""

    def import_engines() -> None:
        shard = importlib.import_module("serve_app.engine.shard")
        for engine in engines:
            shard.import_engine(engine)

    serve(path, import_engines)


def serve(path: Path, prepare: Callable[[], None]) -> None:
    """Fork at a Unix socket until standard input ends. A process that asks before `prepare` has returned waits."""
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen()
        prepare()
        gc.collect()
        gc.freeze()  # what is there now stays shared with the processes that are forked
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # they end by themselves
        command = _fork_until_told(listener)
    if command is not None:
        _become(command)


def _fork_until_told(listener: socket.socket) -> WorkerCommand | None:
    """Returns None when standard input has ended, and in each forked process the command that it is to run."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if sys.stdin in ready:
                return None
            connection, _ = listener.accept()
            with connection, suppress(ValueError):  # it has ended before it had asked
                command = _fork(connection)
                if command is not None:
                    return command


def _fork(connection: socket.socket) -> WorkerCommand | None:
    """The command, in the forked process."""
    command, streams = receive_command(connection)
    is_forked = os.fork() == 0
    if is_forked:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
    else:
        connection.sendall(FORKED)
    for stream in streams:
        os.close(stream)
    return command if is_forked else None


def _become(command: WorkerCommand) -> None:
    """Be the process that Ray meant to start."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(command.variables)
    os.chdir(command.directory)
    run_script(command.arguments)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
