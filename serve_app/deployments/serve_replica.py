"""What Serve calls on each of our deployments but the Gateway, and what it tells a replica about itself."""

import asyncio
from typing import Protocol

from ray import serve
from ray.util import get_node_ip_address

from serve_app.deployments.replica_links import ReplicaIdentity, ReplicaLinks
from serve_app.metrics.of_copies import copy_readings
from serve_app.metrics.ray_export import RayExport
from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription


class ReplicaService(Protocol):
    """What a replica does, without Serve."""

    links: ReplicaLinks

    def describe(self) -> list[ModelDescription]:
        """The models that it serves; none for a Preprocessor."""
        ...

    def check(self) -> None:
        """Raises InternalError when Serve should replace the replica."""
        ...

    async def close(self) -> None:
        """Let the calls at hand end, then end all else."""
        ...


class ServeReplica:
    """Base of the deployments. Their constructors set `service` when it runs, and return: then the replica is ready."""

    service: ReplicaService | None = None
    _exporting: asyncio.Task[None] | None = None

    async def register(self, gateway: LinkAddress) -> list[ModelDescription]:
        """Describe the models to a Gateway, and tell it this replica's state from now on."""
        assert self.service is not None, "Serve calls nothing before the constructor has returned"
        self.service.links.register(gateway)
        return self.service.describe()

    async def hold(self, seconds: float) -> None:
        """Stay open for that long: calls on the call link are not Serve's, and its autoscaling counts these instead."""
        await asyncio.sleep(seconds)

    async def check_health(self) -> None:
        """Serve replaces this replica when it cannot hear, or run, any more."""
        if self.service is not None:
            self.service.check()

    def _export_metrics(self, models: list[str], service: ReplicaService) -> None:
        """Tell Ray's exporter how this copy of the models is, from now on."""
        self._exporting = RayExport(lambda: copy_readings(models, service.links.state())).start()

    async def __del__(self) -> None:
        """Serve awaits it before it ends the replica, for `graceful_shutdown_timeout_s` at most."""
        if self._exporting is not None:
            self._exporting.cancel()
        service, self.service = self.service, None
        if service is not None:
            await service.close()


def own_identity(deployment: str) -> ReplicaIdentity:
    """Of the replica that this process is."""
    context = serve.get_replica_context()
    return ReplicaIdentity(context.replica_tag, context.app_name, deployment, str(get_node_ip_address()))
