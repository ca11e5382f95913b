"""What a backend asks of Serve."""

from dataclasses import dataclass
from typing import Protocol

from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription


@dataclass(frozen=True, slots=True)
class RunningApplication:
    """An application as Serve shows it."""

    status: str  # RUNNING, DEPLOYING, DEPLOY_FAILED, UNHEALTHY, DELETING, ...
    message: str
    deployments: tuple[str, ...]  # none while the first version is built, or when that has failed
    import_path: str = ""  # of its builder; empty where Serve does not say
    asleep: tuple[str, ...] = ()  # deployments of which Serve keeps no replica until somebody asks
    waking: tuple[str, ...] = ()  # those that may sleep and of which none of the wanted replicas runs yet
    replicas: frozenset[str] | None = None  # that run, of all its deployments; None: Serve does not list them now
    room: str = ""  # why Ray has not placed a replica, or what one has lost, and the way out; empty: all are placed


class Control(Protocol):
    """What a backend asks of Serve."""

    node: str  # address of this process's node

    async def applications(self, *, is_repairing: bool = False, is_calm: bool = False) -> dict[str, RunningApplication]:
        """All applications, by name, in the order in which they were deployed.

        is_repairing: whether a copy has lost a shard, and may wait for a node. is_calm: whether all copies that were
        listed last are heard and well: then Serve is asked for all only if what it says in short has changed.
        """
        ...

    async def num_nodes(self) -> int:
        """Nodes of the cluster."""
        ...

    async def register(self, application: str, deployment: str, address: LinkAddress) -> list[list[ModelDescription]]:
        """Register with all replicas of a deployment; what those that answer say of their models.

        Raises UnavailableError when Serve cannot reach the deployment.
        """
        ...

    async def hold(self, application: str, deployment: str, seconds: float) -> None:
        """Keep one call of Serve's open for that long. Raises UnavailableError."""
        ...
