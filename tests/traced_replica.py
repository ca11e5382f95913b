"""A Router or a Preprocessor in a process of its own, without Ray, that traces as the environment says.

`python -m tests.traced_replica Router|Preprocessor`: says when it is ready, then what it serves to each address it is
given, line by line in JSON, until its input ends.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec

from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.deployments.generator_calls import GeneratorCalls
from serve_app.deployments.model_replica import ModelReplica
from serve_app.deployments.preprocessor import ChainService
from serve_app.deployments.replica_links import ReplicaIdentity
from serve_app.observability import configure_logging
from serve_app.planning.generator_plan import plan_generator
from serve_app.preprocessing.chain_host import ChainHost, ChainSpec
from serve_app.tracing.start import start_tracing
from serve_app.types.links import LinkAddress
from serve_app.wire.links import LOOPBACK, Senders
from tests.fakes_group import FakeGroups

READY = "ready"
ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "demo_model" / "model"
CONFIG = ModelConfig.model_validate(
    {
        "name": "demo",
        "source": str(DEMO),
        "max_model_len": 64,
        "parallel": {"pipeline": 2},
        "preprocessing": ["lowercase"],
        "engine": {"max_num_seqs": 4, "max_num_batched_tokens": 64, "block_size": 4},
    }
)


async def start_router() -> ModelReplica:
    """The demo model on two stages that draw by rule."""
    tracing = start_tracing("router", "copy-1")
    plan = plan_generator(CONFIG, ROOT, read_environment()).refuse_problems()
    senders = Senders(LOOPBACK)
    calls = GeneratorCalls(plan, "copy-1", senders, tracing)
    identity = ReplicaIdentity("copy-1", "demo", "Router", LOOPBACK)
    replica = ModelReplica(identity, calls.work, calls, FakeGroups(), senders, tracing=tracing)
    await replica.start()
    return replica


async def start_preprocessor() -> ChainService:
    """Its steps."""
    identity = ReplicaIdentity("steps-1", "demo", "Preprocessor", LOOPBACK)
    service = ChainService(identity, ChainHost([ChainSpec(CONFIG, DEMO)]), start_tracing("preprocessor", "steps-1"))
    service.links.start()
    return service


async def run(deployment: str) -> None:
    """Until the input ends."""
    service: Any = await (start_router() if deployment == "Router" else start_preprocessor())
    print(READY, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        service.links.register(msgspec.json.decode(line, type=LinkAddress))
        print(msgspec.json.encode(service.describe()).decode(), flush=True)
    await service.close()


if __name__ == "__main__":
    configure_logging()
    asyncio.run(run(sys.argv[1]))
