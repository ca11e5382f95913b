"""The engine of a shard whose models are done with an entry after one step."""

import torch

from serve_app.engine.batch_loader import load_batch_stage
from serve_app.engine.batch_runner import BatchRunner
from serve_app.engine.device_memory import CudaMemory
from serve_app.engine.gradient_step import gradient_problem
from serve_app.engine.shard_loop import ShardLoop
from serve_app.freed_memory import resident_bytes
from serve_app.models.batch_stage import BatchStage
from serve_app.parallel.communicator import Communicator
from serve_app.types.plans import MemoryTaken
from serve_app.types.shards import BatchModelReport, BatchShardSettings, EngineLimits, ShardReport, ShardSpec
from serve_app.types.steps import BatchStep


class BatchEngine:
    """ShardEngine of models that are done with an entry after one step."""

    def __init__(self, settings: BatchShardSettings, device: torch.device) -> None:
        self._settings = settings
        self._device = device
        self._runner: BatchRunner | None = None

    def load(self, communicator: Communicator) -> ShardReport:
        """See ShardEngine."""
        settings = self._settings
        stages = [load_batch_stage(model, communicator, self._device) for model in settings.models]
        self._runner = BatchRunner(stages, settings.shard, communicator, self._device)
        reports = [
            report_of(model.name, stage, settings.shard) for model, stage in zip(settings.models, stages, strict=True)
        ]
        kernels = dict.fromkeys(stage.linear_kernel for stage in stages if stage.linear_kernel)
        num_bytes = sum(stage.parameter_bytes for stage in stages)
        return ShardReport(num_bytes, 0, 0.0, reports, linear_kernel=", ".join(kernels))

    @property
    def is_measured(self) -> bool:
        """There is no cache."""
        return False

    def measure(self) -> int:
        """See ShardEngine."""
        return 0

    def allocate(self, _limits: EngineLimits) -> None:
        """There is no cache to make."""

    def memory_taken(self) -> MemoryTaken:
        """See ShardEngine."""
        device_bytes = CudaMemory(self._device).held_bytes() if self._device.type == "cuda" else None
        return MemoryTaken(0, resident_bytes(), device_bytes)

    def forget(self) -> None:
        """There is none to drop."""

    def run(self, loop: ShardLoop) -> None:
        """See ShardEngine."""
        assert self._runner is not None
        loop.run(BatchStep, self._runner, self._runner.busy)


def report_of(name: str, stage: BatchStage, shard: ShardSpec) -> BatchModelReport:
    """What a loaded stage tells of its model."""
    return BatchModelReport(
        name,
        stage.parameter_bytes,
        stage.first_part,
        stage.end_part,
        dict(stage.inputs),
        dict(stage.outputs),
        gradient_problem(stage, shard),
    )
