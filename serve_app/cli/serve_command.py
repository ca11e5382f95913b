"""`rayshard serve`: a child runs Ray and Serve; here a file is checked, and told what becomes of it, until Ctrl-C."""

import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from serve_app.cli.ray_dashboard import read_body
from serve_app.cli.running_servers import ServerNote, servers_directory
from serve_app.cli.serve_events import ApplicationState, Begin, DashboardUp, Event, Phase, RayLost, read_event
from serve_app.cli.serve_process import ServeProcess, without_colours
from serve_app.cli.serve_stop import StopSignals, stop_process
from serve_app.cli.serve_texts import base_url, ray_text, ready_text
from serve_app.cli.throughput_profile import Profile, choose_profile, find_software
from serve_app.config.environment import read_environment
from serve_app.config.server_variables import SHARD_SERVER_VARIABLE, WORKER_SERVER_VARIABLE
from serve_app.errors import ConfigError, RayshardError
from serve_app.gateway.bodies.others import HealthBody

if TYPE_CHECKING:  # they take as long to import as Ray
    from serve_app.cli.check_file import CheckedFile
    from serve_app.planning.serve_file import ServeFile

_CHILD = (sys.executable, "-m", "serve_app.cli.serve_child")
_MAX_STARTS = 3  # a raylet has 30 s to come up, and on a busy machine it sometimes misses them
_POLL_S = 0.25
_REPORT_S = 15.0
_MAX_REASON_LINES = 12  # the log has the rest
_ERROR = re.compile(r"\b(ERROR|CRITICAL|FATAL)\b")
_DEFAULT_VARIABLES = {
    "MALLOC_ARENA_MAX": "2",  # with one for each of 40 threads, a storm of calls leaves the Gateway 400 MB larger
    "METRICS_RECORD_INTERVAL_S": "60",  # of what Ray's dashboard takes itself: its memory is added up for that
    "PYTHONUNBUFFERED": "1",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # new logs are looked for twice a second, and not ten times
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",  # of looks after replicas; at Ray's 0.1 they take twice the CPU
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # one that hangs would be asked to end, for ten minutes
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",  # three of them; Ray's 5 are too short on a busy machine
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",  # workers of no job yet, which nothing could be forked for
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_niceness": "0",  # Ray's own is 15, the lowest share of a busy machine
    "REPORTER_UPDATE_INTERVAL_MS": "10000",  # of what the dashboard shows of each process
}
_CANNOT_START = re.compile(r"model cannot start model=(?P<model>\S+) kind=(?P<kind>\S+) reason=(?P<reason>.*)")


class ServeStartError(RayshardError):
    """The models could not be brought up."""


def serve(
    path: Path,
    check: Callable[[], "CheckedFile"],
    drain_s: float,
    child: Sequence[str] = _CHILD,
    *,
    is_plain: bool = False,
) -> int:
    """Check a file and serve it until Ctrl-C or SIGTERM; gives the exit status.

    `check` runs while the child imports Ray; drain_s: how long requests may go on that run then; is_plain: without
    Serve's throughput mode; `child` stands in for that command in tests. To be called from the main thread: it handles
    signals while it runs.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="rayshard-") as directory:
            sockets = {SHARD_SERVER_VARIABLE: "shards", WORKER_SERVER_VARIABLE: "workers"}
            servers = {variable: str(Path(directory, name)) for variable, name in sockets.items()}
            environment = {**child_environment(), **servers}
            start = partial(ServeProcess, [*child, str(path.resolve())], path.resolve().parent, environment)
            choose = partial(_choose_profile, environment, Path(directory), is_plain=is_plain)
            return _check_and_serve(start, start() if path.is_file() else None, check, drain_s, choose)
    except RayshardError as error:
        print(f"error: {error.message}", file=sys.stderr, flush=True)
    return 1


def _check_and_serve(
    start: Callable[[], ServeProcess],
    first: ServeProcess | None,
    check: Callable[[], "CheckedFile"],
    drain_s: float,
    choose_profile: Callable[["ServeFile"], Profile],
) -> int:
    try:
        checked = check()
        if checked.serve_file is not None and first is not None:
            profile = choose_profile(checked.serve_file)
            return _serve(checked.serve_file, checked, first, start, drain_s, profile)
        print(*checked.problems, sep="\n", file=sys.stderr)
    finally:
        if first is not None:
            first.end()
    return 1


def _serve(
    serve_file: "ServeFile",
    checked: "CheckedFile",
    process: ServeProcess,
    start: Callable[[], ServeProcess],
    drain_s: float,
    profile: Profile,
) -> int:
    _check_ports(serve_file)
    if profile.note:
        print(profile.note, flush=True)
    log_path = _log_path(serve_file.http_port)
    notes = servers_directory(read_environment())
    port, url = serve_file.http_port, base_url(serve_file)
    with StopSignals() as stop, ServerNote(notes, port, url, serve_file.path.resolve(), log_path) as note:
        num_left = _MAX_STARTS
        while num_left:
            num_left -= 1
            is_serving = False
            try:
                print(f"Starting; log in {log_path}; Ctrl-C stops it.", flush=True)
                variables = dict(profile.variables)
                process.begin(Begin(str(log_path), checked.cpu_engines, drain_s, variables, serve_file.http_host))
                run = _Run(process, serve_file, note, stop)
                if run.wait_until_ready(can_retry=num_left > 0):
                    is_serving = True
                    print(ready_text(serve_file, checked.plan_text, log_path), flush=True)
                    run.watch()
                    is_serving, num_left = not run.why_lost, _MAX_STARTS
                if stop.num_received:
                    return 0
            finally:
                stop_process(process, stop, drain_s if is_serving else None)
            print(f"{run.why_lost or 'Ray did not come up in its time'}; starting again", flush=True)
            note.dashboard_is_at(None)
            process = start()
    return 1


def child_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of the child; `variables` stands in for this process's in tests.

    Raises ConfigError when it points at a cluster, which is not ours to start and stop.
    """
    given = dict(os.environ if variables is None else variables)
    if given.get("RAY_ADDRESS", "local") != "local":
        raise ConfigError(
            f"RAY_ADDRESS={given['RAY_ADDRESS']} names a cluster, and `rayshard serve` starts Ray on this machine; "
            "unset it, or run `rayshard deploy FILE` to use the cluster"
        )
    return {**_DEFAULT_VARIABLES, **given, "RAY_ADDRESS": "local"}


def _choose_profile(
    environment: Mapping[str, str], directory: Path, serve_file: "ServeFile", *, is_plain: bool
) -> Profile:
    return choose_profile(serve_file, environment, directory, find_software(environment), is_plain=is_plain)


def process_variables() -> Mapping[str, str]:
    """The environment of this process, for what Ray takes from it."""
    return os.environ


class _Run:
    """One try to bring everything up."""

    def __init__(self, process: ServeProcess, serve_file: "ServeFile", note: ServerNote, stop: StopSignals) -> None:
        self._process = process
        self._path = serve_file.path.resolve()
        self._names = {one.name for one in serve_file.models} | {one.name for one in serve_file.graphs}
        self._health_url = f"{base_url(serve_file)}/health"
        self._note = note
        self._stop = stop
        self._is_ray_up = False
        self.why_lost = ""  # Ray, after it had come up
        self._phase = ""
        self._states: dict[str, ApplicationState] = {}
        self._last_lines: list[str] = []
        self._reported_s = time.monotonic()

    def wait_until_ready(self, *, can_retry: bool) -> bool:
        """Whether the models answer; False when Ray missed its start, or was lost, or we were told to stop."""
        while not self._stop.num_received:
            cause = self._read_log()
            if cause is not None:
                raise ServeStartError(cause)
            has_ended = self._process.exit_status is not None
            if can_retry and (self.why_lost or (has_ended and not self._is_ray_up)):
                return False
            if has_ended or self.why_lost:
                raise ServeStartError(self.why_lost or self._why_it_ended())
            failed = [state for state in self._states.values() if state.status == "DEPLOY_FAILED"]
            if failed:
                raise ServeStartError("\n".join(_why_it_failed(state) for state in failed))
            if self._all_run() and self._all_answer():
                return True
            self._report()
            time.sleep(_POLL_S)
        return False

    def _all_run(self) -> bool:
        """Whether Serve has brought up all of the file."""
        running = {name for name, state in self._states.items() if state.status == "RUNNING"}
        return self._is_ray_up and self._names <= running

    def _all_answer(self) -> bool:
        """Whether the Gateway has met all models: /health is 200 as soon as one answers."""
        try:
            health = msgspec.json.decode(read_body(self._health_url), type=HealthBody)
        except (OSError, msgspec.DecodeError):
            return False
        return health.status == "ok" and not health.num_starting

    def watch(self) -> None:
        """Show errors until we are told to stop, or Ray is lost. Raises ServeStartError when the child ends before."""
        while not self._stop.num_received:
            cause = self._read_log()
            if cause is not None:  # of a model that was deployed later; the others go on
                print(cause, file=sys.stderr, flush=True)
            if self.why_lost:
                return
            if self._process.exit_status is not None:
                raise ServeStartError(self._why_it_ended())
            time.sleep(_POLL_S)

    def _read_log(self) -> str | None:
        """Show what matters of the new lines; gives why a model cannot start, where starting it again is in vain."""
        lines = self._process.new_lines()
        told = [line for line in lines if read_event(line) is None]
        self._last_lines = [*self._last_lines, *told][-_MAX_REASON_LINES:]
        cause: str | None = None
        for line in lines:
            event = read_event(line)
            if event is not None:
                self._take(event)
                continue
            failure = _CANNOT_START.search(line)
            if failure is not None and failure["kind"] == ConfigError.__name__ and cause is None:
                cause = f"model {failure['model']} cannot start: {failure['reason']}"
            elif self._is_ray_up and _ERROR.search(line):
                print(line, file=sys.stderr, flush=True)
        return cause

    def _why_it_ended(self) -> str:
        self._read_log()
        return "\n".join([f"Ray Serve ended with status {self._process.exit_status}:", *self._last_lines])

    def _take(self, event: Event) -> None:
        match event:
            case Phase():
                self._is_ray_up = self._is_ray_up or event.is_ray_up
                self._phase = event.text
                print(event.text, flush=True)
            case DashboardUp():
                self._note.dashboard_is_at(event.url)
                print(ray_text(event.url, self._path), flush=True)
            case ApplicationState():
                known = self._states.get(event.name)
                self._states[event.name] = event
                if event.room != ("" if known is None else known.room):
                    print(f"{event.name} {event.room or 'has found room'}", flush=True)
            case RayLost():
                self.why_lost = event.reason

    def _report(self) -> None:
        if time.monotonic() - self._reported_s >= _REPORT_S:
            self._reported_s = time.monotonic()
            shown = ", ".join(f"{state.name} {state.status}" for state in self._states.values())
            print(f"... {shown or self._phase}", flush=True)


def _why_it_failed(state: ApplicationState) -> str:
    lines = [line for line in without_colours(state.message).splitlines() if line.strip()]
    return "\n".join([f"application {state.name} could not be deployed:", *lines[-_MAX_REASON_LINES:]])


def _check_ports(serve_file: "ServeFile") -> None:
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
