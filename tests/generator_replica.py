"""A replica of a generator in this process, on shards that draw by rule, and the backend that calls it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from serve_app.backend.serve_backend import ServeBackend
from serve_app.config.environment import read_environment
from serve_app.config.failover import FailoverConfig
from serve_app.config.model import ModelConfig
from serve_app.deployments.generator_calls import GeneratorCalls
from serve_app.deployments.model_replica import ModelReplica
from serve_app.deployments.replica_links import ReplicaIdentity
from serve_app.planning.generator_plan import plan_generator
from serve_app.tracing.tracing import Tracing
from serve_app.types.generation import GenerateRequest, OutputChunk, SamplingParams
from serve_app.types.models import ModelDescription, ModelVersion
from serve_app.wire.links import LOOPBACK, Senders
from tests.fakes_engine import FakeModel, run_alone
from tests.fakes_group import FakeGroups
from tests.fakes_serve import FakeControl, running_backend, states, until

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "demo_model" / "model"
READY = {"demo": ["ready"]}
TIMEOUTS = {"heartbeat_s": 0.6, "collective_s": 5.0, "rendezvous_s": 5.0, "load_s": 10.0}


class Generator:
    """One replica, its groups of shards, and the backend that calls it."""

    def __init__(
        self,
        name: str,
        groups: FakeGroups,
        max_queued: int = 16,
        pipeline: int = 2,
        version: ModelVersion | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        config = ModelConfig.model_validate(
            {
                "name": "demo",
                "source": str(DEMO),
                "max_model_len": 64,
                "parallel": {"pipeline": pipeline},
                "engine": {"max_num_seqs": 4, "max_num_batched_tokens": 16, "block_size": 4, "max_queued": max_queued},
                "timeouts": TIMEOUTS,
            }
        )
        plan = plan_generator(config, ROOT, read_environment({})).refuse_problems()
        senders = Senders(LOOPBACK)
        self.groups = groups
        self.calls = GeneratorCalls(plan, name, senders, tracing)
        identity = ReplicaIdentity(name, "demo", "Router", LOOPBACK, version)
        self.replica = ModelReplica(identity, self.calls.work, self.calls, groups, senders, retry_s=0.001)
        self.links = self.replica.links

    def describe(self) -> list[ModelDescription]:
        """One model."""
        return self.replica.describe()


@asynccontextmanager
async def made_generators() -> AsyncIterator[Callable[..., Generator]]:
    """Makes replicas, and ends them."""
    made: list[Generator] = []

    def make(name: str = "a", groups: FakeGroups | None = None, **settings: Any) -> Generator:
        made.append(Generator(name, groups or FakeGroups(), **settings))
        return made[-1]

    yield make
    for one in made:
        one.replica.close_now()
    await asyncio.sleep(0)


@asynccontextmanager
async def backend_of(generator: Generator, failover: FailoverConfig | None = None) -> AsyncIterator[ServeBackend]:
    """A backend that knows the replica."""
    control = FakeControl()
    control.add("demo", "Router", generator)
    async with running_backend(control, failover) as backend:
        await until(lambda: states(backend) == READY)
        yield backend


def request_of(seed: int = 1, max_tokens: int = 12, **changes: object) -> GenerateRequest:
    """A request whose tokens differ by its seed."""
    params = SamplingParams(max_tokens=max_tokens, seed=seed, ignore_eos=True)
    return GenerateRequest(f"r{seed}", [1, 2, 3], params, **changes)  # type: ignore[arg-type]


async def tokens_of(backend: ServeBackend, request: GenerateRequest) -> list[int]:
    """What a request gives."""
    token_ids: list[int] = []

    def take(chunk: OutputChunk) -> bool:
        token_ids.extend(chunk.token_ids)
        return True

    async with asyncio.timeout(15):
        await backend.generate("demo", request, take)
    return token_ids


def expected(request: GenerateRequest, choice: int = 0) -> list[int]:
    """What it gives when it runs alone."""
    return run_alone(FakeModel(), request, choice, 64, frozenset()).token_ids


async def begun(backend: ServeBackend, request: GenerateRequest) -> "asyncio.Task[list[int]]":
    """A request whose first token has come."""
    first = asyncio.Event()
    token_ids: list[int] = []

    def take(chunk: OutputChunk) -> bool:
        token_ids.extend(chunk.token_ids)
        first.set()
        return True

    async def run() -> list[int]:
        await backend.generate("demo", request, take)
        return token_ids

    task = asyncio.create_task(run())
    await asyncio.wait_for(first.wait(), 10)
    return task


def slow_down(generator: Generator, step_s: float = 0.02) -> None:
    """Let each step take so long."""
    for shard in generator.groups.made[-1].shards:
        shard.step_s = step_s
