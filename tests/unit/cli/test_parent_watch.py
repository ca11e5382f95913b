"""What becomes of a child and all that it has started when its parent is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve_app.cli.serve_process import session_members, signal_all

# Starts a child as `rayshard serve` does, and tells its pid.
PARENT = """
import os, sys, time
from pathlib import Path
from serve_app.cli.serve_events import Begin
from serve_app.cli.serve_process import ServeProcess

process = ServeProcess([sys.executable, *sys.argv[2:]], Path.cwd(), os.environ)
process.begin(Begin(sys.argv[1], []))
print(process._process.pid, flush=True)
time.sleep(60)
"""

# Has a process of another group, which heeds no SIGHUP, as Ray has. What is STUCK does not end by itself; what FAILS
# cannot disconnect.
CHILD = """
import os, pathlib, signal, subprocess, sys, time
from serve_app.cli.parent_watch import ParentWatch

sys.stdin.readline()
log, is_stuck = pathlib.Path(sys.argv[1]), sys.argv[2] == "STUCK"

def tell(text):
    with log.open("a") as file:
        print(text, file=file)

code = "import os, signal, time; os.setpgid(0, 0); signal.signal(signal.SIGHUP, signal.SIG_IGN); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", code])
def disconnect():
    if sys.argv[2] == "FAILS":
        raise RuntimeError
    tell("disconnected")

with ParentWatch(0, disconnect, shutdown_s=0.2 if is_stuck else 50.0):
    try:
        tell("serving")
        time.sleep(50)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(50 if is_stuck else 0.05)
        tell("drained")
"""

pytestmark = pytest.mark.process


@contextmanager
def orphaned(log: Path, state: str) -> Iterator[int]:
    """The pid of a child whose parent has just been killed while it was serving."""
    command = [sys.executable, "-c", PARENT, str(log.with_suffix(".out")), "-c", CHILD, str(log), state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            wait_until(lambda: log.exists() and "serving" in log.read_text())
            assert len(session_members(pid)) == 2
            parent.kill()
            parent.wait()
            yield pid
        finally:
            parent.kill()
            signal_all(session_members(pid), signal.SIGKILL)


def wait_until(is_true: Callable[[], bool]) -> None:
    """Fails after a while."""
    deadline_s = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_it_ends_in_order_and_leaves_no_process(tmp_path: Path) -> None:
    log = tmp_path / "told"
    with orphaned(log, "WELL") as pid:
        wait_until(lambda: not session_members(pid))
    assert log.read_text().split() == ["serving", "drained", "disconnected"]


def test_it_leaves_no_process_when_it_cannot_disconnect(tmp_path: Path) -> None:
    log = tmp_path / "told"
    with orphaned(log, "FAILS") as pid:
        wait_until(lambda: not session_members(pid))
    assert log.read_text().split() == ["serving", "drained"]


def test_one_that_does_not_end_is_killed_when_its_time_is_over_with_all_that_it_has_started(tmp_path: Path) -> None:
    log = tmp_path / "told"
    with orphaned(log, "STUCK") as pid:
        wait_until(lambda: not session_members(pid))
    assert log.read_text().split() == ["serving"]


def test_what_shares_a_session_with_others_ends_itself_alone(tmp_path: Path) -> None:
    code = CHILD.replace('subprocess.Popen([sys.executable, "-c", code])', "")
    log = tmp_path / "told"
    command = [sys.executable, "-c", code, str(log), "WELL"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.write(b"begin\n")
        child.stdin.flush()
        wait_until(lambda: log.exists() and "serving" in log.read_text())
        child.stdin.close()
        assert child.wait(20) == 0
    assert os.getpid() in session_members(os.getsid(0))
    assert log.read_text().split() == ["serving", "drained", "disconnected"]
