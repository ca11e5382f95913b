"""A model that computes nothing, behind the real Router: what is left is what serving itself costs.

In a Serve file: `import_path: bench.constant_engine:build_model`, one shard.
"""

import time
from functools import partial

import ray
from ray.serve import Application

from serve_app import app
from serve_app.config.model import ModelConfig
from serve_app.deployments.ray_shard_group import RayShardGroups
from serve_app.deployments.router import Router
from serve_app.deployments.shard import Shard
from serve_app.engine.shard_loop import ShardLoop
from serve_app.types.models import ModelSource
from serve_app.types.shards import (
    BatchShardSettings,
    EngineLimits,
    Rendezvous,
    ShardReport,
    ShardSettings,
)
from serve_app.types.steps import StepInput, StepOutput
from serve_app.wire.control_link import ControlAddress, ControlClient

STEP_S = 0.010
TOKEN_ID = 300
_NUM_BLOCKS = 65_536


def build_model(args: ModelConfig) -> Application:
    """The application of serve_app.app:build_model with the stand-in in place of the shard."""
    deployment = app.build_model(args)._bound_deployment
    return deployment.options(func_or_class=ConstantRouter).bind(args)


class ConstantShard(Shard):
    """A shard whose every step takes STEP_S and draws TOKEN_ID for everybody."""

    def create(self, settings: ShardSettings | BatchShardSettings, sources: list[ModelSource], host: str) -> None:
        """Nothing to bring up."""

    def load(self, _rendezvous: Rendezvous | None) -> ShardReport:
        """Nothing to load, and room for everybody."""
        return ShardReport(parameter_bytes=0, num_blocks=_NUM_BLOCKS, load_s=0.0)

    def allocate(self, limits: EngineLimits) -> None:
        """Nothing to allocate."""

    def run(self, address: ControlAddress) -> None:
        """Answer the Router's steps until it says stop."""
        ShardLoop(ControlClient(address, shard_index=0)).run(StepInput, ConstantRunner())


class ConstantRunner:
    """A StepRunner that computes nothing."""

    def run(self, step: StepInput) -> StepOutput:
        """TOKEN_ID for everybody."""
        time.sleep(STEP_S)
        return StepOutput(step.step_id, [TOKEN_ID] * sum(step.samples))


ConstantShardActor = ray.remote(ConstantShard)


class ConstantRouter(Router):
    """The Router, with stand-ins for shards."""

    async def __init__(self, config: ModelConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        await super().__init__(config, groups_of=partial(RayShardGroups, shard_actor=ConstantShardActor))
