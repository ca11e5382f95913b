"""What runs on a cluster: Serve's view of the applications, and the Gateway's of their copies and queues."""

import urllib.error
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from serve_app.cli.ray_dashboard import LOOPBACK
from serve_app.cli.serve_view import ApplicationView, ServeView
from serve_app.gateway.bodies.others import HealthBody
from serve_app.types.models import CopyState

_ANY_HOST = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model, or graph."""

    name: str
    copies: list[CopyState]


@dataclass(frozen=True, slots=True)
class ApplicationStatus:
    """One application."""

    name: str
    state: str  # as Serve names it
    detail: str  # what is wrong with it; empty: nothing is known to be
    num_running: int  # copies of its deployments that run, as Serve counts them
    num_wanted: int
    models: list[ModelStatus]


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """All that `rayshard status` shows."""

    dashboard: str
    gateway: str | None  # None: Serve does not run, or listens where only its own machine reaches it
    health: str  # ok, unavailable or draining, as the Gateway says; unknown: no answer
    detail: str
    applications: list[ApplicationStatus]


def read_status(
    view: ServeView, dashboard_url: str, read: Callable[[str], bytes], rooms: Mapping[str, str]
) -> ClusterStatus:
    """The status of a cluster; `read` gives the body that a URL answers with, and raises OSError when none does.

    rooms: why copies have no place, by application.
    """
    gateway = gateway_url(view, dashboard_url)
    health = HealthBody("unknown") if gateway is None else _read_health(gateway, read)
    applications = [_status_of(one, health, rooms.get(one.name, "")) for one in view.applications.values()]
    return ClusterStatus(dashboard_url, gateway, health.status, health.detail or "", applications)


def gateway_url(view: ServeView, dashboard_url: str) -> str | None:
    """Where a client reaches the Gateway, seen from here; None: nowhere."""
    if view.http_options is None:
        return None
    host, dashboard_host = view.http_options.host, urlsplit(dashboard_url).hostname or ""
    if host in _ANY_HOST:
        host = dashboard_host
    elif host in LOOPBACK and dashboard_host not in LOOPBACK:
        return None
    return f"http://{f'[{host}]' if ':' in host else host}:{view.http_options.port}"


def _read_health(gateway: str, read: Callable[[str], bytes]) -> HealthBody:
    try:
        return msgspec.json.decode(read(f"{gateway}/health"), type=HealthBody)
    except (OSError, urllib.error.URLError) as error:
        return HealthBody("unknown", f"{gateway}/health does not answer ({getattr(error, 'reason', error)})")
    except msgspec.DecodeError:
        return HealthBody("unknown", f"{gateway}/health does not answer as a Gateway does")


def _status_of(application: ApplicationView, health: HealthBody, room: str) -> ApplicationStatus:
    deployments, copies = application.deployments.values(), health.models or {}
    newcomer = (health.newcomers or {}).get(application.name)
    trouble = "" if application.is_running else application.trouble
    told = "" if newcomer is None else newcomer.detail
    if newcomer is not None and newcomer.state == "waiting":  # the Gateway knows what is free
        room = newcomer.detail
    return ApplicationStatus(
        application.name,
        application.status,
        room or trouble or told,
        sum(one.num_running for one in deployments),
        sum(one.target_num_replicas for one in deployments),
        [ModelStatus(name, copies[name]) for name in _model_names(application) if name in copies],
    )


def _model_names(application: ApplicationView) -> list[str]:
    """The names that clients call its models by."""
    arguments: Any = (application.deployed_app_config or {}).get("args")
    given = arguments if isinstance(arguments, dict) else {}
    listed = given.get("models")
    several = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    names = [one.get("name") for one in (given, *several)]
    return [name for name in names if isinstance(name, str)]
