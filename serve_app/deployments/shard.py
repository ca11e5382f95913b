"""The actor that holds one shard."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import ray
from ray.util import get_node_ip_address

from serve_app.checkpoints.source import local_directory
from serve_app.config.environment import read_environment
from serve_app.observability import configure_logging
from serve_app.types.models import ModelSource
from serve_app.types.shards import (
    BatchShardSettings,
    EngineKind,
    EngineLimits,
    Rendezvous,
    ShardLocation,
    ShardReport,
    ShardSettings,
)
from serve_app.wire.control_link import ControlAddress

if TYPE_CHECKING:
    from serve_app.engine.shard import EngineShard


class Shard:
    """One stage and rank of one model copy, in a process of its own; a thin coat around the engine's shard."""

    def __init__(self) -> None:
        configure_logging()
        self._engine: EngineShard | None = None

    def location(self) -> ShardLocation:
        """Where Ray has put this shard."""
        return ShardLocation(str(get_node_ip_address()), os.getpid())

    def prepare(self, kind: EngineKind) -> None:
        """Import what a shard of that kind runs, ahead of its settings."""
        from serve_app.engine.shard import import_engine

        import_engine(kind)

    def create(self, settings: ShardSettings | BatchShardSettings, sources: list[ModelSource], host: str) -> None:
        """Bring torch up, and the models' files onto this node; `host` is the address to meet the others on."""
        from serve_app.engine.shard import EngineShard

        directories = [str(local_directory(source, read_environment())) for source in sources]
        if isinstance(settings, BatchShardSettings):
            models = [replace(one, source_dir=at) for one, at in zip(settings.models, directories, strict=True)]
            self._engine = EngineShard(replace(settings, models=models), host)
        else:
            self._engine = EngineShard(replace(settings, source_dir=directories[0]), host)

    def open_store(self, rendezvous_s: float) -> int:
        """Listen for the rest of the group; gives the port."""
        return self._own().open_store(rendezvous_s)

    def load(self, rendezvous: Rendezvous | None) -> ShardReport:
        """Meet the group and read this shard's tensors."""
        return self._own().load(rendezvous)

    def allocate(self, limits: EngineLimits) -> None:
        """Make the KV cache; called for models that have one."""
        self._own().allocate(limits)

    def run(self, address: ControlAddress) -> None:
        """Run the Router's steps; this call's failure is how the Router learns of a death."""
        self._own().run(address)

    def leave(self) -> None:
        """Let go of a group that has lost a shard, and keep what is loaded for the next `load`."""
        self._own().leave()

    def move(self, host: str) -> None:
        """The address to meet the next group on."""
        self._own().move(host)

    def _own(self) -> "EngineShard":
        assert self._engine is not None, "create comes first"
        return self._engine


ShardActor = ray.remote(Shard)
