"""Serve as a backend asks it: what runs, registration with all replicas, and calls that its autoscaling counts."""

import asyncio
import logging
from dataclasses import replace

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.util import get_node_ip_address

from serve_app.backend.control import RunningApplication
from serve_app.checkpoints.sentence_modules import transformer_directory
from serve_app.checkpoints.source import local_directory
from serve_app.config.environment import read_environment
from serve_app.errors import UnavailableError
from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription

logger = logging.getLogger(__name__)


class ServeControl:
    """Control over Ray Serve, inside one of its replicas.

    Serve runs an ordinary handle call as a streaming generator, whose executor waits until its caller has taken note:
    a caller that is stopped would stop every other caller's calls too. So none is made here: `register` is a broadcast,
    and `hold` goes to a replica that has been chosen before (both are plain actor calls).
    """

    def __init__(self) -> None:
        self.node = str(get_node_ip_address())

    async def applications(self) -> dict[str, RunningApplication]:
        """See Control."""
        status = await asyncio.to_thread(serve.status)
        return {
            name: RunningApplication(app.status.value, app.message, tuple(app.deployments))
            for name, app in status.applications.items()
        }

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
        handle = serve.get_deployment_handle(deployment, application)
        try:
            answers = await handle.broadcast("register", address).results_async(return_exceptions=True)
        except (RayError, RayServeException, DeploymentUnavailableError) as error:
            raise UnavailableError(f"no replica of {application} answers: {type(error).__name__}") from error
        return [answer for answer in answers if isinstance(answer, list)]

    async def hold(self, application: str, deployment: str, seconds: float) -> None:
        """See Control."""
        handle = serve.get_deployment_handle(deployment, application).options(method_name="hold")
        try:
            async with handle.choose_replica() as chosen:
                await handle.dispatch(chosen, seconds)
        except (RayError, RayServeException, DeploymentUnavailableError) as error:
            raise UnavailableError(f"no replica of {application} holds a call: {type(error).__name__}") from error


def place_here(description: ModelDescription) -> ModelDescription:
    """The description with a source_dir that this node has: tokenizer and chat template are read from it.

    Fetches files that are missing. Raises ConfigError.
    """
    if description.source is None:
        return description
    directory = local_directory(description.source, read_environment(), needs_weights=False)
    return replace(description, source_dir=str(transformer_directory(directory)))
