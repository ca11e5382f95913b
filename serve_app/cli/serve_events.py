"""What `rayshard serve` tells its child, and what that tells it: one line of the child's log for each event."""

import msgspec

from serve_app.types.shards import EngineKind

_MARK = "rayshard serve: "


class Begin(msgspec.Struct, frozen=True):
    """The file is right: serve it."""

    log_path: str
    cpu_engines: list[EngineKind]  # that shards on CPU run
    drain_s: float = 0.0  # how long running requests may go on after SIGINT
    variables: dict[str, str] = {}  # of the environment, for Ray's processes
    http_host: str = "127.0.0.1"  # the file's, or what the command was told instead


class Phase(msgspec.Struct, frozen=True, tag="phase"):
    """What it does from now on."""

    text: str
    is_ray_up: bool = False


class DashboardUp(msgspec.Struct, frozen=True, tag="dashboard"):
    """Ray's dashboard answers."""

    url: str


class ApplicationState(msgspec.Struct, frozen=True, tag="application"):
    """One application, as Serve reports it; told when its status, or what it waits for, has changed."""

    name: str
    status: str
    message: str
    room: str = ""  # why Ray has not placed a replica of it, and the way out


class RayLost(msgspec.Struct, frozen=True, tag="ray_lost"):
    """A process that Ray cannot be without has ended; nothing answers any more, and the child ends."""

    reason: str


class Draining(msgspec.Struct, frozen=True, tag="draining"):
    """No request is taken any more, and those that run may end; told when their number has changed."""

    num_requests: int


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """It waits for no request any more."""

    num_left: int  # that have not ended


Event = Phase | DashboardUp | ApplicationState | RayLost | Draining | Drained


def event_line(event: Event) -> str:
    """The line that tells an event."""
    return _MARK + msgspec.json.encode(event).decode()


def read_event(line: str) -> Event | None:
    """The event that a line of the log tells; None: it is another line."""
    if not line.startswith(_MARK):
        return None
    try:
        event: Event = msgspec.json.decode(line.removeprefix(_MARK), type=Event)
    except msgspec.DecodeError:
        return None
    return event
