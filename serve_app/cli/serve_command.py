"""`rayshard serve`: runs `serve run` as a child, tells when the models answer, stops what it started."""

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from types import FrameType

from serve_app.cli.ray_dashboard import ApplicationState, application_states, auth_token, status_of
from serve_app.cli.serve_process import ServeProcess, without_colours
from serve_app.cli.serve_texts import base_url, ray_text, ready_text
from serve_app.errors import ConfigError, RayshardError
from serve_app.planning.serve_file import ServeFile

_MAX_STARTS = 3  # a raylet has 30 s to come up, and on a busy machine it sometimes misses them
_POLL_S = 0.25
_REPORT_S = 15.0
_SHUTDOWN_S = 40.0  # Serve drains its replicas first
_SHUTDOWN_UNREADY_S = 2.0  # nothing is served yet that could be drained
_MAX_REASON_LINES = 12  # the log has the rest
_STARTED = re.compile(r"Started a local Ray instance\.(?:.* (?P<dashboard>http://\S+))?")
_ERROR = re.compile(r"\b(ERROR|CRITICAL|FATAL)\b")
_DEFAULT_VARIABLES = {
    "MALLOC_ARENA_MAX": "2",  # with one for each of 40 threads, a storm of calls leaves the Gateway 400 MB larger
    "PYTHONUNBUFFERED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own is 15, the lowest share of a busy machine
}
_CANNOT_START = re.compile(r"model cannot start model=(?P<model>\S+) kind=(?P<kind>\S+) reason=(?P<reason>.*)")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ServeStartError(RayshardError):
    """The models could not be brought up."""


def serve(serve_file: ServeFile, plan_text: str, serve_run: Sequence[str] | None = None) -> int:
    """Serve a checked file until Ctrl-C or SIGTERM; gives the exit status.

    `plan_text` is the table of the shards; `serve_run` stands in for the command of that name in tests. To be called
    from the main thread: it handles signals while it runs.
    """
    command = serve_run or [str(Path(sys.executable).with_name("serve")), "run", str(serve_file.path.resolve())]
    try:
        environment = child_environment()
        _check_ports(serve_file)
        log_path = _log_path(serve_file.http_port)
        with StopSignals() as stop:
            for num_left in reversed(range(_MAX_STARTS)):
                process = ServeProcess(command, serve_file.path.resolve().parent, environment, log_path)
                shutdown_s = _SHUTDOWN_UNREADY_S
                try:
                    print(f"Starting Ray and the models; log in {log_path}; Ctrl-C stops it.", flush=True)
                    run = _Run(process, serve_file, environment, stop)
                    if run.wait_until_ready(can_retry=num_left > 0):
                        shutdown_s = _SHUTDOWN_S
                        print(ready_text(serve_file, plan_text, log_path), flush=True)
                        run.watch()
                        return 0
                    if stop.num_received:
                        return 0
                finally:
                    _stop(process, stop, shutdown_s)
                print("Ray did not come up in its time; trying again", flush=True)
    except RayshardError as error:
        print(f"error: {error.message}", file=sys.stderr, flush=True)
    return 1


def child_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of `serve run`; `variables` stands in for this process's in tests.

    Raises ConfigError when it points at a cluster, which is not ours to start and stop.
    """
    given = dict(os.environ if variables is None else variables)
    if given.get("RAY_ADDRESS", "local") != "local":
        raise ConfigError(
            f"RAY_ADDRESS={given['RAY_ADDRESS']} names a cluster, and `rayshard serve` starts Ray on this machine; "
            "unset it, or run `serve deploy FILE` to use the cluster"
        )
    return {**_DEFAULT_VARIABLES, **given, "RAY_ADDRESS": "local"}


class StopSignals:
    """Counts the signals that ask us to stop, while it is entered."""

    def __init__(self) -> None:
        self.num_received = 0
        self._previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def __enter__(self) -> "StopSignals":
        for number in _SIGNALS:
            signal.signal(number, self._count)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _count(self, _number: int, _frame: FrameType | None) -> None:
        self.num_received += 1


class _Run:
    """One try to bring everything up."""

    def __init__(
        self, process: ServeProcess, serve_file: ServeFile, environment: Mapping[str, str], stop: StopSignals
    ) -> None:
        self._process = process
        self._path = serve_file.path.resolve()
        self._health_url = f"{base_url(serve_file)}/health"
        self._environment = environment
        self._stop = stop
        self._is_ray_up = False
        self._dashboard_url: str | None = None
        self._last_lines: list[str] = []
        self._reported_s = time.monotonic()

    def wait_until_ready(self, *, can_retry: bool) -> bool:
        """Whether the models answer; False when Ray missed its start or we were told to stop."""
        while not self._stop.num_received:
            cause = self._read_log()
            if cause is not None:
                raise ServeStartError(cause)
            if self._process.exit_status is not None:
                if can_retry and not self._is_ray_up:
                    return False
                raise ServeStartError(self._why_it_ended())
            states = self._states()
            failed = [state for state in states if state.status == "DEPLOY_FAILED"]
            if failed:
                raise ServeStartError("\n".join(_why_it_failed(state) for state in failed))
            if self._is_ray_up and status_of(self._health_url) == HTTPStatus.OK:
                return True
            self._report(states)
            time.sleep(_POLL_S)
        return False

    def watch(self) -> None:
        """Show errors until we are told to stop. Raises ServeStartError when the child ends before."""
        while not self._stop.num_received:
            cause = self._read_log()
            if cause is not None:  # of a model that was deployed later; the others go on
                print(cause, file=sys.stderr, flush=True)
            if self._process.exit_status is not None:
                raise ServeStartError(self._why_it_ended())
            time.sleep(_POLL_S)

    def _read_log(self) -> str | None:
        """Show what matters of the new lines; gives why a model cannot start, where starting it again is in vain."""
        lines = self._process.new_lines()
        self._last_lines = [*self._last_lines, *lines][-_MAX_REASON_LINES:]
        cause: str | None = None
        for line in lines:
            started = _STARTED.search(line)
            if started:
                self._is_ray_up = True
                self._dashboard_url = started["dashboard"]
                if self._dashboard_url is not None:
                    print(ray_text(self._dashboard_url, self._path, self._environment), flush=True)
            failure = _CANNOT_START.search(line)
            if failure is not None and failure["kind"] == ConfigError.__name__ and cause is None:
                cause = f"model {failure['model']} cannot start: {failure['reason']}"
            elif self._is_ray_up and _ERROR.search(line):
                print(line, file=sys.stderr, flush=True)
        return cause

    def _why_it_ended(self) -> str:
        self._read_log()
        return "\n".join([f"`serve run` ended with status {self._process.exit_status}:", *self._last_lines])

    def _states(self) -> list[ApplicationState]:
        if self._dashboard_url is None:
            return []
        return application_states(self._dashboard_url, auth_token(self._environment))

    def _report(self, states: list[ApplicationState]) -> None:
        if time.monotonic() - self._reported_s >= _REPORT_S:
            self._reported_s = time.monotonic()
            shown = ", ".join(f"{state.name} {state.status}" for state in states)
            print(f"... {shown or 'Ray is starting'}", flush=True)


def _stop(process: ServeProcess, stop: StopSignals, shutdown_s: float) -> None:
    """End the child and all it started: gently first, at once when told a second time."""
    process.interrupt()
    num_before, deadline_s = stop.num_received, time.monotonic() + shutdown_s
    if num_before:
        print("Stopping ...", flush=True)
    while process.exit_status is None and stop.num_received == num_before and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    process.end()


def _why_it_failed(state: ApplicationState) -> str:
    lines = [line for line in without_colours(state.message).splitlines() if line.strip()]
    return "\n".join([f"application {state.name} could not be deployed:", *lines[-_MAX_REASON_LINES:]])


def _check_ports(serve_file: ServeFile) -> None:
    """Raises ConfigError when something else listens already: its answers would be taken for ours."""
    _check_port("http_options", serve_file.http_host, serve_file.http_port)
    if serve_file.grpc_port is not None:
        _check_port("grpc_options", "0.0.0.0", serve_file.grpc_port)


def _check_port(where: str, host: str, port: int) -> None:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"{where}: cannot listen on {host}:{port} ({error.strerror}); stop what uses it, or set another port"
        ) from error


def _log_path(port: int) -> Path:
    directory = Path(".rayshard").resolve()
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{directory} for the log cannot be made ({error.strerror}); start from a folder that you may write to"
        ) from error
    return directory / f"serve-{port}.log"
