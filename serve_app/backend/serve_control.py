"""Serve as a backend asks it: what runs, registration with all replicas, and calls that its autoscaling counts."""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig
from ray.serve.context import _get_global_client
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.schema import ApplicationDetails, DeploymentDetails
from ray.util import get_node_ip_address

from serve_app.backend.control import RunningApplication
from serve_app.backend.placement import WaitingPlaces
from serve_app.backend.ray_rooms import listed_applications, room_reasons
from serve_app.checkpoints.sentence_modules import transformer_directory
from serve_app.checkpoints.source import local_directory
from serve_app.config.environment import read_environment
from serve_app.errors import UnavailableError
from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription

logger = logging.getLogger(__name__)

# After that long all is asked for again, whatever is said in short: where one more copy comes, or a change begins and
# ends, between two looks, every status is what it was, and that is known here so much later.
_WHOLE_S = 6.0
_UNREACHABLE = (RayError, RayServeException, DeploymentUnavailableError, KeyError)  # KeyError: Serve knows no such one


@dataclass(frozen=True, slots=True)
class Look:
    """What Serve has said of all applications: it and this process take some 40 ms of CPU for it, in short one."""

    looked_s: float
    short: Sequence[bytes]  # the statuses of applications and of their deployments, asked for before all else
    running: dict[str, RunningApplication]
    waiting: dict[str, str]  # why Ray has not placed a replica, by application
    is_quiet: bool  # all run, and as many replicas as are wanted

    def holds(self, short: Sequence[bytes], now_s: float) -> bool:
        """Whether asking for all again would bring nothing new, as far as what is said in short shows."""
        return self.is_quiet and self.short == short and now_s - self.looked_s < _WHOLE_S


class ServeControl:
    """Control over Ray Serve, inside one of its replicas.

    Serve runs an ordinary handle call as a streaming generator, whose executor waits until its caller has taken note:
    a caller that is stopped would stop every other caller's calls too. So none is made here: `register` is a broadcast,
    and `hold` goes to a replica that has been chosen before (both are plain actor calls).
    """

    def __init__(self) -> None:
        self.node = str(get_node_ip_address())
        self._waiting = WaitingPlaces()
        self._look: Look | None = None

    async def applications(self, *, is_repairing: bool = False, is_calm: bool = False) -> dict[str, RunningApplication]:
        """See Control."""
        known = self._look if is_calm and not is_repairing else None
        look = self._look = await asyncio.to_thread(_look, known, is_repairing=is_repairing)
        told, self._waiting = self._waiting.take(look.waiting)
        return {name: replace(application, room=told.get(name, "")) for name, application in look.running.items()}

    async def http_host(self) -> str | None:
        """The address that Serve's HTTP proxies listen on; None when Serve does not say."""
        try:
            client = await asyncio.to_thread(_get_global_client)
        except (RayError, RayServeException) as error:
            logger.warning("Serve does not say where it listens: %s", type(error).__name__)
            return None
        return None if client is None else str(client.http_config.host)

    async def num_nodes(self) -> int:
        """See Control."""
        return len(await asyncio.to_thread(ray.nodes))

    async def register(self, application: str, deployment: str, address: LinkAddress) -> list[list[ModelDescription]]:
        """See Control."""
        try:
            handle = serve.get_deployment_handle(deployment, application)
            answers = await handle.broadcast("register", address).results_async(return_exceptions=True)
        except _UNREACHABLE as error:
            raise UnavailableError(f"no replica of {application} answers: {type(error).__name__}") from error
        return [answer for answer in answers if isinstance(answer, list)]

    async def hold(self, application: str, deployment: str, seconds: float) -> None:
        """See Control."""
        try:
            handle = serve.get_deployment_handle(deployment, application).options(method_name="hold")
            async with handle.choose_replica() as chosen:
                await handle.dispatch(chosen, seconds)
        except _UNREACHABLE as error:
            raise UnavailableError(f"no replica of {application} holds a call: {type(error).__name__}") from error


def own_replica_id() -> str:
    """What Serve calls the replica that this process is."""
    return str(serve.get_replica_context().replica_tag)


def place_here(description: ModelDescription) -> ModelDescription:
    """The description with a source_dir that this node has: tokenizer and chat template are read from it.

    Fetches files that are missing. Raises ConfigError.
    """
    if description.source is None:
        return description
    directory = local_directory(description.source, read_environment(), needs_weights=False)
    return replace(description, source_dir=str(transformer_directory(directory)))


def running_application(app: ApplicationDetails, live: Iterable[str]) -> RunningApplication:
    """An application as Serve lists it; live: its deployments that have not ended.

    Serve lists those of the version that it last built, and none from a changed file's coming until that is built, or
    for good when it cannot be: the old ones run on meanwhile.
    """
    deployments = tuple(app.deployments) or tuple(live)
    told = [app.message, *(deployment.message for deployment in app.deployments.values())]
    message = "\n".join(text.strip() for text in told if text.strip())
    config = app.deployed_app_config
    asleep = tuple(name for name, one in app.deployments.items() if one.target_num_replicas == 0)
    waking = tuple(
        name
        for name, one in app.deployments.items()
        if _may_sleep(one) and one.target_num_replicas and not _running_replicas(one)
    )
    import_path = config.import_path if config is not None else ""
    replicas = frozenset(name for one in app.deployments.values() for name in _running_replicas(one))
    listed = replicas if app.deployments else None
    return RunningApplication(app.status.value, message, deployments, import_path, asleep, waking, listed)


def _running_replicas(deployment: DeploymentDetails) -> list[str]:
    return [one.replica_id for one in deployment.replicas if one.state.value == "RUNNING"]


def _may_sleep(deployment: DeploymentDetails) -> bool:
    """Whether Serve keeps none of its replicas when nobody asks."""
    scaling = deployment.deployment_config.autoscaling_config
    if isinstance(scaling, AutoscalingConfig):
        return bool(scaling.min_replicas == 0)
    return isinstance(scaling, dict) and scaling.get("min_replicas") == 0


def _look(known: Look | None, *, is_repairing: bool) -> Look:
    """What Serve says now; `known` itself where that still holds."""
    looked_s = time.monotonic()
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return Look(looked_s, [], {}, {}, is_quiet=False)
    short = ray.get(client._controller.list_serve_statuses.remote())
    if known is not None and known.holds(short, looked_s):
        return known
    found = listed_applications(client)
    live: dict[str, list[str]] = {}
    if not all(app.deployments for app in found.values()):  # seldom, and Serve's status does not say
        for one in _live_deployments(client):
            live.setdefault(one.app_name, []).append(one.name)
    running = {name: running_application(app, live.get(name, ())) for name, app in found.items()}
    waiting = room_reasons(found, is_repairing=is_repairing)
    return Look(looked_s, short, running, waiting, is_quiet=is_quiet(found.values()) and not waiting)


def is_quiet(applications: Iterable[ApplicationDetails]) -> bool:
    """Whether all run, and each deployment has the replicas that it is to have."""
    return all(
        app.status.value == "RUNNING"
        and app.deployments
        and all(
            one.status.value == "HEALTHY"
            and len(_running_replicas(one)) == len(one.replicas) == one.target_num_replicas
            for one in app.deployments.values()
        )
        for app in applications
    )


def _live_deployments(client: Any) -> list[Any]:
    """Serve's ids of all deployments whose replicas it keeps, whatever is being built."""
    ids: list[Any] = ray.get(client._controller.list_deployment_ids.remote())
    return ids
