"""What a shard asks of the engine in it."""

from typing import Protocol

from serve_app.engine.shard_loop import ShardLoop
from serve_app.parallel.communicator import Communicator
from serve_app.types.plans import MemoryTaken
from serve_app.types.shards import EngineLimits, ShardReport


class ShardEngine(Protocol):
    """What a shard computes."""

    def load(self, communicator: Communicator) -> ShardReport:
        """Read this shard's tensors; the seconds of the report are not known yet."""
        ...

    @property
    def is_measured(self) -> bool:
        """Whether `measure` says how many KV blocks there is room for, and not the report of `load`."""
        ...

    def measure(self) -> int:
        """KV blocks that the device has room for. All shards of a group measure together. Raises ConfigError."""
        ...

    def allocate(self, limits: EngineLimits) -> None:
        """Make the KV cache, of the size that all shards have room for; called for models that have one."""
        ...

    def memory_taken(self) -> MemoryTaken:
        """What the process takes now; called from another thread than the rest."""
        ...

    def forget(self) -> None:
        """Drop the KV cache and keep the tensors: a new epoch begins, in which `load` is not called again."""
        ...

    def run(self, loop: ShardLoop) -> None:
        """Run the loop with this engine's steps."""
        ...
