"""A process that has imported what many others need, and forks them: what they import is paid for, and held, once.

Processes ask for it by `forked_process`, at a Unix socket; one that asks before everything is imported waits.
"""

import gc
import json
import os
import select
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from serve_app.deployments.forked_process import FORKED, WorkerCommand, receive_command, run_script, take_limits

_RAY = "RAY_"  # Ray reads such a variable when it is imported, and never again
_REQUEST_S = 5.0  # for all that one process sends, which it does at once
_HARMLESS = ("RAY_CLIENT_MODE", "RAY_LD_PRELOAD_ON_WORKERS")  # it sets these itself, and Python reads them


def serve(
    path: Path, prepare: Callable[[], None], prepare_with_ray: Callable[[], None], request_s: float = _REQUEST_S
) -> None:
    """Fork at a Unix socket until standard input ends.

    prepare: imports what does not import Ray; prepare_with_ray: what does, as soon as standard input has told the
    variables of Ray's workers (`variables_line`). A process that has others runs by itself, and so does one that
    says nothing for `request_s`.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen()
        prepare()
        line = sys.stdin.readline()
        if not line:
            return
        variables = json.loads(line)
        if variables is not None:
            os.environ.update(variables)
            prepare_with_ray()
        gc.collect()
        gc.freeze()  # what is there now stays shared with the processes that are forked
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # they end by themselves
        command = _fork_until_told(listener, request_s, has_ray=variables is not None)
    if command is not None:
        _become(command)


def variables_line(variables: Mapping[str, str] | None) -> bytes:
    """What a server is to read from its standard input: the variables of Ray's workers; None: they import Ray."""
    return json.dumps(None if variables is None else dict(variables)).encode() + b"\n"


def _fork_until_told(listener: socket.socket, request_s: float, *, has_ray: bool) -> WorkerCommand | None:
    """Returns None when standard input has ended, and in each forked process the command that it is to run."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if sys.stdin in ready:
                return None
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(request_s)
                try:
                    command, streams = receive_command(connection)
                except (ValueError, OSError):  # it has ended before it had asked, or does not ask
                    continue
                is_fit = not has_ray or has_imported_the_same(os.environ, command.variables)
                if _fork(connection, streams, is_fit=is_fit and not _is_gone(connection)):
                    return command


def has_imported_the_same(own: Mapping[str, str], asked: Mapping[str, str]) -> bool:
    """Whether Ray, as this process has imported it, is what a process of these variables would import."""
    names = {name for name in (*own, *asked) if name.startswith(_RAY)} - set(_HARMLESS)
    return all(own.get(name) == asked.get(name) for name in names)


def _is_gone(connection: socket.socket) -> bool:
    """Whether the process at the other end has closed the connection, not its writing side alone."""
    poll = select.poll()
    poll.register(connection, 0)  # POLLHUP and POLLERR are told in any case
    return bool(poll.poll(0))


def _fork(connection: socket.socket, streams: list[int], *, is_fit: bool) -> bool:
    """Whether this is the forked process; the one that has asked is told when there is one."""
    is_forked = is_fit and os.fork() == 0
    if is_forked:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
    elif is_fit:
        with suppress(OSError):  # it has ended just now
            connection.sendall(FORKED)
    for stream in streams:
        os.close(stream)
    return is_forked


def draw_own_numbers() -> None:
    """Seed numpy's generator of this process anew, if it has one: all forks of a process share its state."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _become(command: WorkerCommand) -> None:
    """Be the process that Ray meant to start."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(command.variables)
    os.chdir(command.directory)
    take_limits(command)
    draw_own_numbers()
    run_script(command.arguments)
