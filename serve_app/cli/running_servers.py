"""What a `rayshard serve` leaves for the other commands of its user on this machine: where it is, while it runs."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import msgspec

from serve_app.cli.process_stat import read_stat, variables_of
from serve_app.config.environment import Environment


class RunningServer(msgspec.Struct, frozen=True):
    """One `rayshard serve`."""

    host: str  # the machine: a home directory may be that of several
    pid: int
    start_ticks: int
    http_port: int
    url: str  # of its Gateway
    file: str
    log: str
    dashboard_url: str | None = None  # None: Ray's dashboard is not up yet

    @property
    def variables(self) -> dict[str, str]:
        """The environment that it was started with."""
        return variables_of(self.pid)


class ServerNote:
    """Leaves word of this process's server while it is entered."""

    def __init__(self, directory: Path, http_port: int, url: str, file: Path, log: Path) -> None:
        stat = read_stat(os.getpid())
        self._path = directory / f"{socket.gethostname()}-{http_port}.json"
        self._server = RunningServer(
            socket.gethostname(),
            os.getpid(),
            0 if stat is None else stat.start_ticks,
            http_port,
            url,
            str(file),
            str(log),
        )

    def __enter__(self) -> "ServerNote":
        self.dashboard_is_at(None)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._path.unlink()

    def dashboard_is_at(self, url: str | None) -> None:
        """Say where Ray's dashboard is; None: it is not up. Where nothing can be written nobody is told."""
        self._server = msgspec.structs.replace(self._server, dashboard_url=url)
        partial = self._path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial.write_bytes(msgspec.json.encode(self._server))
            partial.replace(self._path)


def servers_directory(environment: Environment) -> Path:
    """Where the notes lie: beside what else we keep for this user."""
    return environment.kernel_times_file.with_name("running")


def running_servers(directory: Path) -> list[RunningServer]:
    """Those of this machine that run, by port."""
    servers = [_read(path) for path in directory.glob("*.json")]
    return sorted((one for one in servers if one is not None and _runs(one)), key=lambda one: one.http_port)


def _read(path: Path) -> RunningServer | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunningServer)
    except (OSError, msgspec.DecodeError):
        return None  # it has just ended, or is another version's


def _runs(server: RunningServer) -> bool:
    if server.host != socket.gethostname():
        return False
    stat = read_stat(server.pid)
    return stat is not None and stat.start_ticks == server.start_ticks
