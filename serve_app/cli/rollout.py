"""Waits until applications that have been submitted run, or one of them does not come up."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from serve_app.cli.clock import Clock
from serve_app.cli.ray_dashboard import DashboardError
from serve_app.cli.serve_view import ApplicationView, ServeView
from serve_app.errors import RayshardError

_POLL_S = 0.5
_REPORT_S = 15.0
_ROOMS_S = 5.0


class Cluster(Protocol):
    """What a deployment asks of a cluster's dashboard. Raises DashboardError."""

    def serve_view(self) -> ServeView:
        """Serve and its applications."""
        ...

    def rooms(self) -> dict[str, str]:
        """By application, why Ray has no place for a copy of it, and the way out."""
        ...

    def put_applications(self, content: Mapping[str, Any]) -> None:
        """Run these applications, and no others."""
        ...


class SupersededError(RayshardError):
    """Somebody else has submitted something since."""


class Rollout:
    """Applications on their way, from the moment in which they were submitted."""

    def __init__(
        self, cluster: Cluster, names: Sequence[str], before: ServeView, timeout_s: float, clock: Clock
    ) -> None:
        """before: what ran until then."""
        self._cluster = cluster
        self._names = names
        self._before = before
        self._timeout_s = timeout_s
        self._clock = clock
        self._deployed_s: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self._rooms: dict[str, str] = {}  # as they have been told
        self._asked_rooms_s = clock.now_s()
        self._reported_s = clock.now_s()
        self._lost: DashboardError | None = None

    def wait(self) -> str | None:
        """Why one of them does not run; None: all do. Raises SupersededError."""
        deadline_s = self._clock.now_s() + self._timeout_s
        known: dict[str, ApplicationView] = {}
        while True:
            known = self._look() or known
            failed = [one for one in known.values() if one.has_failed_since(self._before.applications.get(one.name))]
            if failed:
                return "\n".join(f"{one.name} does not start: {one.trouble}" for one in failed)
            if len(known) == len(self._names) and all(one.is_running for one in known.values()):
                return None
            if self._clock.now_s() >= deadline_s:
                return "\n".join(self._why_late(known))
            self._clock.sleep(_POLL_S)

    def _look(self) -> dict[str, ApplicationView] | None:
        """Those that are there; None: the dashboard does not answer now, as when its node is busy."""
        try:
            view = self._cluster.serve_view()
        except DashboardError as error:
            self._lost = error
            return None
        self._lost = None
        found = {name: view.applications[name] for name in self._names if name in view.applications}
        for one in found.values():
            if self._deployed_s.setdefault(one.name, one.last_deployed_time_s) != one.last_deployed_time_s:
                raise SupersededError("another deployment has come in between; it is left as it is")
        self._tell(found)
        return found

    def _tell(self, found: Mapping[str, ApplicationView]) -> None:
        for one in found.values():
            if self._told.get(one.name) != one.status:
                self._told[one.name] = one.status
                print(f"{one.name} {one.status}", flush=True)
        self._tell_rooms(found)
        if self._clock.now_s() - self._reported_s >= _REPORT_S:
            self._reported_s = self._clock.now_s()
            waiting = [one for one in found.values() if not one.is_running]
            for one in waiting:
                print(f"... {one.name} {one.status}{_and_why(one)}", flush=True)

    def _tell_rooms(self, found: Mapping[str, ApplicationView]) -> None:
        """Tell why Ray waits, which Serve does not know."""
        if self._clock.now_s() - self._asked_rooms_s < _ROOMS_S or all(one.is_running for one in found.values()):
            return
        self._asked_rooms_s = self._clock.now_s()
        try:
            rooms = self._cluster.rooms()
        except DashboardError:  # Serve's part of it answers, and tells the rest
            return
        for name, reason in rooms.items():
            if name in found and self._rooms.get(name) != reason:
                print(f"{name} {reason}", flush=True)
        self._rooms = rooms

    def _why_late(self, known: Mapping[str, ApplicationView]) -> list[str]:
        if self._lost is not None:
            return [self._lost.message]
        after = f"after {self._timeout_s:g} s"
        gone = [f"{name} is not there {after}" for name in self._names if name not in known]
        late = [one for one in known.values() if not one.is_running]
        return gone + [
            f"{one.name} is {one.status} {after}"
            + (f": {self._rooms[one.name]}" if one.name in self._rooms else _and_why(one))
            for one in late
        ]


def _and_why(application: ApplicationView) -> str:
    *_, last = ["", *application.trouble.splitlines()]
    return f": {last}" if last else ""
