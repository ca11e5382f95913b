"""A process for work that may never end: it is killed then, and replaced."""

import os
import select
import subprocess
import sys
import time
from pathlib import Path

from serve_app.errors import InternalError
from serve_app.preprocessing.process_frames import LENGTH, OVERTIME

_START_TIMEOUT_S = 60.0
_WALL_PER_CPU = 20.0  # how long a process may be kept from its CPU time before it is taken for stuck
_IMPORT_ROOT = Path(__file__).resolve().parents[2]


class KillableProcess:
    """One worker process and its two pipes; a process that had to be killed is replaced.

    module: what it runs, with `arguments`; it answers as process_frames.answer_frames does. name: of its work.
    """

    def __init__(self, module: str, arguments: list[str], name: str) -> None:
        self._module = module
        self._arguments = arguments
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._stdin = self._stdout = -1
        self._is_ready = False  # has imported what it needs
        self._is_stopped = False

    def start(self) -> None:
        """Starts the process; does not wait for it."""
        if self._is_stopped:
            raise InternalError(f"the {self._name} workers are closed")
        search_path = os.pathsep.join([str(_IMPORT_ROOT), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": search_path, "PYTHONUTF8": "1"},  # nothing of ours is handed on
            cwd="/",
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)

    def exchange(self, request: bytes, timeout_s: float) -> bytes:
        """The reply to one request. TimeoutError, EOFError: there was none, and the process is a new one."""
        self._wait_until_ready()
        deadline = time.monotonic() + timeout_s * _WALL_PER_CPU
        try:
            self._write(LENGTH.pack(len(request)) + request, deadline)
            return self._read_frame(deadline)
        except (TimeoutError, EOFError) as error:
            is_overtime = self.discard() == -OVERTIME
            self.start()
            if is_overtime:
                raise TimeoutError from error
            raise

    def stop(self) -> None:
        """End the process for good. The only method that any thread may call at any time: it closes no pipe."""
        self._is_stopped = True
        process = self._process
        if process is not None:
            process.kill()

    def discard(self) -> int:
        """End the process, close its pipes, reap it. Returns its exit status."""
        process, self._process, self._is_ready = self._process, None, False
        if process is None:
            return 0
        with process:
            process.kill()
        return process.returncode

    def _wait_until_ready(self) -> None:
        if self._process is None:  # the last start failed
            self.start()
        if self._is_ready:
            return
        try:
            self._read_frame(time.monotonic() + _START_TIMEOUT_S)
        except (TimeoutError, EOFError) as error:
            self.discard()
            raise InternalError(f"the {self._name} worker does not start; see the server's log") from error
        self._is_ready = True

    def _read_frame(self, deadline: float) -> bytes:
        (num_bytes,) = LENGTH.unpack(self._read(LENGTH.size, deadline))
        return self._read(num_bytes, deadline)

    def _read(self, num_bytes: int, deadline: float) -> bytes:
        content = bytearray()
        while len(content) < num_bytes:
            _wait_for(self._stdout, select.POLLIN, deadline)
            piece = os.read(self._stdout, num_bytes - len(content))
            if not piece:
                raise EOFError
            content += piece
        return bytes(content)

    def _write(self, content: bytes, deadline: float) -> None:
        rest = memoryview(content)
        while rest:
            _wait_for(self._stdin, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._stdin, rest) :]
            except BrokenPipeError as error:
                raise EOFError from error


def _wait_for(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
