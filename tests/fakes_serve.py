"""A cluster without Serve: replicas that are tasks of this process, over the real links, and what Serve would say."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from serve_app.backend.control import RunningApplication
from serve_app.backend.serve_backend import ServeBackend
from serve_app.config.failover import FailoverConfig
from serve_app.deployments.replica_links import ReplicaIdentity, ReplicaLinks
from serve_app.errors import UnavailableError
from serve_app.types.links import LinkAddress
from serve_app.types.models import CopyState, ModelDescription
from serve_app.types.tensors import InferRequest, InferResult
from serve_app.wire.links import LOOPBACK, Senders
from serve_app.wire.messages import PROTOCOL_VERSION, Call, InferMessage, InferReply, Reply

LIMIT_S = 10.0
Found = TypeVar("Found")


class Service(Protocol):
    """What FakeControl asks of a replica."""

    links: ReplicaLinks

    def describe(self) -> list[ModelDescription]: ...


@dataclass
class FakeControl:
    """Control over applications that a test names; replicas are called in this process."""

    node: str = LOOPBACK
    replicas: dict[tuple[str, str], list[Service]] = field(default_factory=dict)  # by application and deployment
    statuses: dict[str, str] = field(default_factory=dict)  # of applications; RUNNING unless given
    asleep: set[str] = field(default_factory=set)  # applications whose Router Serve keeps no replica of
    waking: set[str] = field(default_factory=set)  # and those of which it starts one again
    listed: dict[str, RunningApplication] = field(default_factory=dict)  # what Serve says, whatever replicas run
    registered: list[tuple[str, str]] = field(default_factory=list)
    held: list[tuple[str, str]] = field(default_factory=list)
    rooms: dict[str, str] = field(default_factory=dict)  # by application, why a replica is not placed
    is_repairing: bool = False  # as it was last asked
    num_looks: int = 0
    is_calm: bool = False  # as it was last asked

    def add(self, application: str, deployment: str, *services: Service) -> None:
        """Run replicas of a deployment."""
        self.replicas.setdefault((application, deployment), []).extend(services)

    async def applications(self, *, is_repairing: bool = False, is_calm: bool = False) -> dict[str, RunningApplication]:
        """See Control."""
        self.is_repairing, self.is_calm = is_repairing, is_calm
        self.num_looks += 1
        found: dict[str, list[str]] = {}
        for application, deployment in self.replicas:
            found.setdefault(application, []).append(deployment)
        running = {
            name: RunningApplication(
                self.statuses.get(name, "RUNNING"),
                "",
                tuple(deployments),
                asleep=("Router",) if name in self.asleep else (),
                waking=("Router",) if name in self.waking else (),
                room=self.rooms.get(name, ""),
            )
            for name, deployments in found.items()
        }
        return running | self.listed

    async def num_nodes(self) -> int:
        """One."""
        return 1

    async def register(self, application: str, deployment: str, address: LinkAddress) -> list[list[ModelDescription]]:
        """See Control."""
        self.registered.append((application, deployment))
        services = self.replicas.get((application, deployment))
        if not services:
            raise UnavailableError("no replica runs")
        for service in services:
            service.links.register(address)
        return [service.describe() for service in services]

    async def hold(self, application: str, deployment: str, seconds: float) -> None:
        """See Control."""
        self.held.append((application, deployment))
        await asyncio.sleep(seconds)


class FakeReplica:
    """A replica that answers InferMessages when it may, over real links."""

    def __init__(self, name: str, application: str = "app", model: str = "m", created_s: int = 1) -> None:
        self.name = name
        self.state = CopyState(name, "ready", "", 0, 0, 0, 0)
        self.fails_with: Exception | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.taken: list[str] = []
        self.requests: list[InferRequest] = []
        self.cancelled: list[str] = []
        self.description = ModelDescription(model, "embed", "", 8, 8, 10, [], created_s)
        identity = ReplicaIdentity(name, application, "Router", LOOPBACK)
        self.links = ReplicaLinks(identity, Senders(LOOPBACK), self.answer, lambda: self.state)
        self.links.start()

    def describe(self) -> list[ModelDescription]:
        """One model."""
        return [self.description]

    async def answer(self, call: Call) -> Reply:
        """The reply to a call."""
        assert isinstance(call, InferMessage)
        self.taken.append(call.request.request_id)
        self.requests.append(call.request)
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled.append(call.request.request_id)
            raise
        if self.fails_with is not None:
            raise self.fails_with
        return InferReply(PROTOCOL_VERSION, 0, call.stream, InferResult(call.request.items))

    def tell(self, **changes: Any) -> None:
        """Change the state and tell it."""
        values = {field: getattr(self.state, field) for field in CopyState.__dataclass_fields__}
        self.state = CopyState(**{**values, **changes})
        self.links.tell_state()

    def stand_still(self) -> None:
        """Hear and tell nothing, as a stopped process; `links.start` lets it go on."""
        for task in self.links._tasks:
            task.cancel()

    def die(self) -> None:
        """Fall silent without a word."""
        for task in self.links._tasks:
            task.cancel()
        self.links._calls.close()


@asynccontextmanager
async def running_backend(control: FakeControl, failover: FailoverConfig | None = None) -> AsyncIterator[ServeBackend]:
    """A backend that knows what runs."""
    backend = ServeBackend(control, failover=failover)
    await backend.find_running_models()
    try:
        yield backend
    finally:
        backend.close()
        await asyncio.sleep(0)


async def until(condition: Callable[[], Found]) -> Found:
    """Wait for something that other tasks bring about; gives it."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            if found := condition():
                return found
            await asyncio.sleep(0.005)


def states(backend: ServeBackend) -> Mapping[str, list[str]]:
    """The states of all copies, by model."""
    return {name: [copy.state for copy in copies] for name, copies in backend.health().models.items()}


def add_replica(
    control: FakeControl, made: dict[str, FakeReplica], application: str, model: str, created_s: int = 1
) -> FakeReplica:
    """An application of one replica that serves a model; `made` has it by the application's name."""
    replica = made[application] = FakeReplica(application, application, model, created_s)
    control.add(application, "Router", replica)
    return replica


async def looked(backend: ServeBackend, since_registered_s: float = 0.0) -> None:
    """Let a backend look at Serve; it has registered with its replicas so many seconds ago."""
    for application in backend._applications.all:
        application.registered_s = time.monotonic() - since_registered_s
    await backend._applications.discover()
    for application in backend._applications.all:
        if application.registering is not None:
            await application.registering
