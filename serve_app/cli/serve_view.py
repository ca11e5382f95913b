"""Serve's applications as the dashboard's REST API shows them; what we do not read is left out."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OUR_ERROR = re.compile(r"serve_app\.errors\.(?P<kind>\w+): (?P<message>.+(?:\n\S.*){0,4})")
_IN_VAIN = "ConfigError"  # a copy that has failed so fails again
_MAX_LINES = 12


class ReplicaView(msgspec.Struct, frozen=True):
    """A copy of a deployment."""

    state: str


class DeploymentView(msgspec.Struct, frozen=True):
    """One deployment of an application."""

    name: str
    status: str
    message: str = ""
    target_num_replicas: int = 0
    replicas: list[ReplicaView] = []

    @property
    def num_running(self) -> int:
        """Its copies that run."""
        return sum(replica.state == "RUNNING" for replica in self.replicas)


class ApplicationView(msgspec.Struct, frozen=True):
    """One application."""

    name: str
    status: str
    message: str = ""
    last_deployed_time_s: float = 0.0
    deployed_app_config: dict[str, Any] | None = None  # as it was submitted; None: not by the REST API
    deployments: dict[str, DeploymentView] = {}

    @property
    def is_running(self) -> bool:
        """Whether all its copies are up, and those that it was last deployed with."""
        return self.status == "RUNNING"

    @property
    def trouble(self) -> str:
        """What is wrong with it, in a few lines; empty: nothing is known to be."""
        told = [one.message for one in self.deployments.values() if one.status != "HEALTHY" and one.message]
        text = _COLOUR.sub("", "\n".join(told) or self.message)
        ours = list(_OUR_ERROR.finditer(text))
        if ours:
            return ours[-1]["message"].strip()
        return "\n".join([line for line in text.splitlines() if line.strip()][-_MAX_LINES:])

    def has_failed_since(self, before: "ApplicationView | None") -> bool:
        """Whether it does not come up as it was last deployed; `before`: as it was until then."""
        if self.status == "DEPLOY_FAILED":
            return True
        known = {} if before is None else {name: one.message for name, one in before.deployments.items()}
        new = [one.message for name, one in self.deployments.items() if one.message != known.get(name, "")]
        return any(found["kind"] == _IN_VAIN for message in new for found in _OUR_ERROR.finditer(message))


class HttpOptions(msgspec.Struct, frozen=True):
    """Where Serve's proxy listens."""

    host: str = "127.0.0.1"
    port: int = 8000


class ServeView(msgspec.Struct, frozen=True):
    """Serve and its applications."""

    applications: Mapping[str, ApplicationView]
    http_options: HttpOptions | None = None  # None: Serve does not run
    target_capacity: float | None = None

    @property
    def is_placed(self) -> bool:
        """Whether no copy is on its way: each that there is has its place."""
        deployments = [one for application in self.applications.values() for one in application.deployments.values()]
        return all(replica.state != "STARTING" for one in deployments for replica in one.replicas)
