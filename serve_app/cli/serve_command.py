"""`rayshard serve`: runs `serve run` as a child, tells when the models answer, stops what it started."""

import json
import os
import re
import shlex
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPResponse
from pathlib import Path
from types import FrameType

from serve_app.cli.serve_process import ServeProcess, without_colours
from serve_app.errors import ConfigError, RayshardError
from serve_app.planning.reservations import reserved_cpus
from serve_app.planning.serve_file import ServeFile

_MAX_STARTS = 3  # a raylet has 30 s to come up, and on a busy machine it sometimes misses them
_POLL_S = 0.25
_REPORT_S = 15.0
_SHUTDOWN_S = 40.0  # Serve drains its replicas first
_HTTP_TIMEOUT_S = 5.0
_MAX_REASON_LINES = 12  # the log has the rest
_STARTED = re.compile(r"Started a local Ray instance\.(?:.* (?P<dashboard>http://\S+))?")
_ERROR = re.compile(r"\b(ERROR|CRITICAL|FATAL)\b")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_DEFAULT_VARIABLES = {
    "MALLOC_ARENA_MAX": "2",  # with one for each of 40 threads, a storm of calls leaves the Gateway 400 MB larger
    "PYTHONUNBUFFERED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own is 15, the lowest share of a busy machine
}
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
        _check_port(serve_file)
        _check_cpus(serve_file, environment, os.cpu_count() or 1)
        log_path = _log_path(serve_file.http_port)
        with StopSignals() as stop:
            for num_left in reversed(range(_MAX_STARTS)):
                process = ServeProcess(command, serve_file.path.resolve().parent, environment, log_path)
                try:
                    run = _Run(process, serve_file, environment, stop)
                    if run.wait_until_ready(can_retry=num_left > 0):
                        print(ready_text(serve_file, plan_text, log_path), flush=True)
                        run.watch()
                        return 0
                    if stop.num_received:
                        return 0
                finally:
                    _stop(process, stop)
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


def ready_text(serve_file: ServeFile, plan_text: str, log_path: Path) -> str:
    """What a user sees when the models answer: address, shards, a request to try."""
    address = _base_url(serve_file)
    lines = ["", plan_text.strip(), "", f"Serving at {address}; log in {log_path}; Ctrl-C stops it."]
    if serve_file.gateway.api_keys_file is None and serve_file.http_host not in _LOOPBACK:
        lines.append(f"Open to everybody who reaches {serve_file.http_host}: no api_keys_file is set for the Gateway.")
    if serve_file.models:
        route, example = _example_request(serve_file)
        body = json.dumps(example, ensure_ascii=True)
        url = f"{address}{route}"
        lines += ["Try it:", f"  curl {url} -H 'Content-Type: application/json' -d {shlex.quote(body)}"]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ApplicationState:
    """One application as Serve reports it."""

    name: str
    status: str
    message: str


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
        self._health_url = f"{_base_url(serve_file)}/health"
        self._environment = environment
        self._stop = stop
        self._is_ray_up = False
        self._dashboard_url: str | None = None
        self._last_lines: list[str] = []
        self._reported_s = time.monotonic()

    def wait_until_ready(self, *, can_retry: bool) -> bool:
        """Whether the models answer; False when Ray missed its start or we were told to stop."""
        print("Starting Ray and the models ...", flush=True)
        while not self._stop.num_received:
            self._read_log()
            if self._process.exit_status is not None:
                if can_retry and not self._is_ray_up:
                    return False
                raise ServeStartError(self._why_it_ended())
            states = self._states()
            failed = [state for state in states if state.status == "DEPLOY_FAILED"]
            if failed:
                raise ServeStartError("\n".join(_why_it_failed(state) for state in failed))
            if self._is_ray_up and _status_of(self._health_url) == HTTPStatus.OK:
                return True
            self._report(states)
            time.sleep(_POLL_S)
        return False

    def watch(self) -> None:
        """Show errors until we are told to stop. Raises ServeStartError when the child ends before."""
        while not self._stop.num_received:
            self._read_log()
            if self._process.exit_status is not None:
                raise ServeStartError(self._why_it_ended())
            time.sleep(_POLL_S)

    def _read_log(self) -> None:
        lines = self._process.new_lines()
        self._last_lines = [*self._last_lines, *lines][-_MAX_REASON_LINES:]
        for line in lines:
            started = _STARTED.search(line)
            if started:
                self._is_ray_up = True
                self._dashboard_url = started["dashboard"]
            if self._is_ray_up and _ERROR.search(line):
                print(line, file=sys.stderr, flush=True)

    def _why_it_ended(self) -> str:
        self._read_log()
        return "\n".join([f"`serve run` ended with status {self._process.exit_status}:", *self._last_lines])

    def _states(self) -> list[ApplicationState]:
        if self._dashboard_url is None:
            return []
        return application_states(self._dashboard_url, _auth_token(self._environment))

    def _report(self, states: list[ApplicationState]) -> None:
        if time.monotonic() - self._reported_s >= _REPORT_S:
            self._reported_s = time.monotonic()
            shown = ", ".join(f"{state.name} {state.status}" for state in states)
            print(f"... {shown or 'Ray is starting'}", flush=True)


def application_states(dashboard_url: str, auth_token: str | None) -> list[ApplicationState]:
    """The applications as Ray's dashboard knows them; none while it does not answer."""
    request = urllib.request.Request(f"{dashboard_url}/api/serve/applications/")
    if auth_token is not None:
        request.add_header("Authorization", f"Bearer {auth_token}")
    try:
        with _open(request) as response:
            applications = json.load(response).get("applications", {})
    except (OSError, ValueError):
        return []
    return [ApplicationState(name, entry["status"], entry["message"]) for name, entry in applications.items()]


def _open(request: urllib.request.Request) -> HTTPResponse:
    """Open a URL of this machine, whatever proxies the environment names."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    response: HTTPResponse = opener.open(request, timeout=_HTTP_TIMEOUT_S)
    return response


def _status_of(url: str) -> int | None:
    try:
        with _open(urllib.request.Request(url)) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _auth_token(environment: Mapping[str, str]) -> str | None:
    """Ray's token, from where Ray itself takes it or has written it."""
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"]
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() if path.is_file() else None


def _stop(process: ServeProcess, stop: StopSignals) -> None:
    """End the child and all it started: gently first, at once when told a second time."""
    process.interrupt()
    num_before, deadline_s = stop.num_received, time.monotonic() + _SHUTDOWN_S
    if num_before:
        print("Stopping ...", flush=True)
    while process.exit_status is None and stop.num_received == num_before and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    process.end()


def _why_it_failed(state: ApplicationState) -> str:
    lines = [line for line in without_colours(state.message).splitlines() if line.strip()]
    return "\n".join([f"application {state.name} could not be deployed:", *lines[-_MAX_REASON_LINES:]])


def _check_cpus(serve_file: ServeFile, environment: Mapping[str, str], num_cores: int) -> None:
    """Raises ConfigError when Ray would wait for ever for cores that this machine has not."""
    needed = reserved_cpus(serve_file)
    if needed > num_cores and not environment.get("RAY_OVERRIDE_RESOURCES"):
        raise ConfigError(
            f"the applications reserve {needed:g} CPUs, and this machine has {num_cores}; lower device.cpus_per_shard, "
            "or serve fewer models or copies (a reservation is no limit: shards may use all cores)"
        )


def _check_port(serve_file: ServeFile) -> None:
    """Raises ConfigError when something else listens already: its answers would be taken for ours."""
    host, port = serve_file.http_host, serve_file.http_port
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"http_options: cannot listen on {host}:{port} ({error.strerror}); stop what uses it, or set another port"
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


def _base_url(serve_file: ServeFile) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serve_file.http_host, serve_file.http_host)
    return f"http://{f'[{host}]' if ':' in host else host}:{serve_file.http_port}"


def _can_chat(serve_file: ServeFile) -> bool:
    """Whether the first model is a directory with a chat template."""
    directory = serve_file.path.resolve().parent / Path(serve_file.models[0].config.source).expanduser()
    config = directory / "tokenizer_config.json"
    return (directory / "chat_template.jinja").is_file() or (
        config.is_file() and '"chat_template"' in config.read_text()
    )


def _example_request(serve_file: ServeFile) -> tuple[str, dict[str, object]]:
    """A route and a body that the first model answers."""
    model = serve_file.models[0].config
    text = "date jan 8 2038"
    sampling = {"max_tokens": 32, "temperature": 0}
    if model.task == "generate" and _can_chat(serve_file):
        messages = [{"role": "user", "content": text}]
        return "/v1/chat/completions", {"model": model.name, "messages": messages, **sampling}
    if model.task == "generate":
        return "/v1/completions", {"model": model.name, "prompt": text, **sampling}
    if model.task == "score":
        return "/v1/score", {"model": model.name, "text_1": "a question", "text_2": ["an answer", "another"]}
    if model.task == "predict":
        return "/predict", {"model": model.name, "inputs": {}}
    route = "/v1/embeddings" if model.task == "embed" else "/v1/classify"
    return route, {"model": model.name, "input": "I was charged twice"}
