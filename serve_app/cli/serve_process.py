"""A child process in a session of its own: its log, and its end with everything that it started."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import msgspec

from serve_app.cli.process_stat import PROCESSES, read_stat
from serve_app.cli.serve_events import Begin

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STANDARD_ERROR = 2
_POLL_S = 0.1
_TERMINATE_S = 5.0
SHUTDOWN_S = 40.0  # Serve ends its replicas one after the other


class ServeProcess:
    """A running command; what it prints goes to a file.

    Ray's processes leave their process group but stay in the session, so the session tells what has to end with it.
    """

    def __init__(
        self, command: Sequence[str], directory: Path, environment: Mapping[str, str], log_path: Path | None = None
    ) -> None:
        """log_path: None for a command that waits for `begin`."""
        with nullcontext(_STANDARD_ERROR) if log_path is None else log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._log = None if log_path is None else log_path.open("rb")
        self._partial_line = b""

    def begin(self, begin: Begin) -> None:
        """Tell it what to do; it is to log to a new file."""
        path = Path(begin.log_path)
        path.write_bytes(b"")
        self._log = path.open("rb")
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, as its exit status tells
            self._process.stdin.write(msgspec.json.encode(begin) + b"\n")
            self._process.stdin.flush()

    @property
    def exit_status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def new_lines(self) -> list[str]:
        """Whole lines printed since the last call, without colours."""
        if self._log is None:
            return []
        *lines, self._partial_line = (self._partial_line + self._log.read()).split(b"\n")
        return [without_colours(line.decode(errors="replace")) for line in lines]

    def interrupt(self) -> None:
        """Ask it to stop, as Ctrl-C would."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """End what is left of it and of the processes it started."""
        end_all(self._members)
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._log is not None:
            self._log.close()

    def _members(self) -> list[int]:
        self._process.poll()  # reaps it, so that only the living are left
        return session_members(self._process.pid)


def without_colours(text: str) -> str:
    """The text a terminal would show, in one colour."""
    return _COLOUR.sub("", text)


def end_all(members: Callable[[], list[int]]) -> None:
    """Have processes end, by force those that have not after a while; members: the pids of those that live."""
    signal_all(members(), signal.SIGTERM)
    deadline_s = time.monotonic() + _TERMINATE_S
    while members() and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    signal_all(members(), signal.SIGKILL)


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to processes, of which some may have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):  # it ended by itself
            os.kill(pid, number)


def session_members(session_id: int) -> list[int]:
    """Processes of a session that have not ended."""
    stats = (read_stat(int(path.name)) for path in PROCESSES.glob("[0-9]*"))
    return [stat.pid for stat in stats if stat is not None and stat.session == session_id]
