"""The child of `rayshard serve`, as far as it comes without a cluster."""

import subprocess
import sys
from functools import cached_property
from pathlib import Path

import pytest
import ray._private.node

from serve_app.cli.serve_child import HeadNode, has_known_node, tell_when_lost
from serve_app.cli.serve_events import Event, RayLost


def test_what_is_put_off_is_what_ray_starts() -> None:
    assert has_known_node()
    for name in ("start_api_server", "start_monitor", "start_ray_processes"):
        assert getattr(HeadNode, name) is not getattr(ray._private.node.Node, name)


def test_another_ray_is_started_as_it_starts_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def start_monitor(_self: object, _is_new: bool) -> None:
        """With a parameter more."""

    monkeypatch.setattr(ray._private.node.Node, "start_monitor", start_monitor)
    assert not has_known_node()
    monkeypatch.delattr(ray._private.node.Node, "start_monitor")
    assert not has_known_node()


class EndingNode:
    """A node whose processes end one after the other, each time it is asked."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self.num_asked = 0

    def dead_processes(self) -> list[tuple[str, "subprocess.Popen[bytes]"]]:
        self.num_asked += 1
        return [(name, self._ended) for name in self._names[: self.num_asked]]

    @cached_property
    def _ended(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
        process.wait()
        return process


@pytest.mark.parametrize("vital", ["raylet", "gcs_server"])
def test_ray_is_lost_with_what_it_cannot_be_without_and_with_nothing_else(vital: str) -> None:
    node, told = EndingNode("log_monitor", "dashboard", vital), list[Event]()
    tell_when_lost(node, told.append, poll_s=0.0)
    assert node.num_asked == 3
    assert told == [RayLost(f"Ray's {vital} (pid {node._ended.pid}) ended with status 3")]


@pytest.mark.process
def test_it_ends_without_a_trace_when_it_is_never_told_to_begin(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve_app.cli.serve_child", "serve_config.yaml"]
    ended = subprocess.run(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.process
def test_it_can_be_interrupted_when_a_shell_has_started_it_in_the_background() -> None:
    lines = (
        "import signal, sys, pathlib",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "from serve_app.cli import serve_child",
        "serve_child.main(pathlib.Path('serve_config.yaml'))",
        "sys.exit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60, check=False).returncode == 0
