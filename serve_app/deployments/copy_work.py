"""What a model copy runs on its shards: generation step after step, or batches that are done after one step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.config.model import ModelConfig
from serve_app.deployments.step_loop import StepLoop, StepScheduler
from serve_app.types.models import ModelSource
from serve_app.types.shards import (
    BatchShardSettings,
    EngineLimits,
    ShardReport,
    ShardSettings,
    ShardSpec,
)

Settings = ShardSettings | BatchShardSettings


@dataclass(frozen=True, slots=True)
class Load:
    """How much a copy holds at the moment."""

    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0


class CopyWork(Protocol):
    """One kind of work; a ModelCopy carries it through the lives of its shards."""

    config: ModelConfig  # device, parallel and timeouts count
    name: str  # for the log
    shards: list[ShardSpec]
    sources: list[ModelSource]  # what a shard's node must have

    def settings(self, shard: ShardSpec, num_threads: int) -> Settings:
        """How one shard is to be made."""
        ...

    def limits(self, reports: Sequence[ShardReport]) -> EngineLimits | None:
        """Sizes of the KV caches; None where there are none. Raises ConfigError."""
        ...

    def scheduler(self, reports: Sequence[ShardReport], limits: EngineLimits | None) -> StepScheduler[object]:
        """The scheduler of a new life."""
        ...

    async def warm_up(self, loop: StepLoop[object]) -> None:
        """Run something small through the shards of a new life. Raises ConfigError when the model is unfit."""
        ...

    def take(self, results: object) -> None:
        """What a step has come to."""
        ...

    def lose_shards(self) -> None:
        """The life is over."""
        ...

    def load(self) -> Load:
        """How much is held."""
        ...
