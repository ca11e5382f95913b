"""The engine of a shard of a model that generates."""

from pathlib import Path

import torch

from serve_app.engine.kv_cache import kv_block_bytes
from serve_app.engine.loader import LoadedStage, load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.engine.shard_loop import ShardLoop
from serve_app.parallel.communicator import Communicator
from serve_app.types.shards import EngineLimits, ShardReport, ShardSettings
from serve_app.types.steps import StepInput


class GenerationEngine:
    """ShardEngine of a model that generates."""

    def __init__(self, settings: ShardSettings, device: torch.device) -> None:
        self._settings = settings
        self._device = device
        self._communicator: Communicator | None = None
        self._loaded: LoadedStage | None = None
        self._runner: ModelRunner | None = None

    def load(self, communicator: Communicator) -> ShardReport:
        """See ShardEngine."""
        settings = self._settings
        self._communicator = communicator
        self._loaded = load_stage(
            Path(settings.source_dir),
            settings.dtype,
            settings.shard,
            communicator,
            self._device,
            settings.quantization,
            settings.max_model_len,
            settings.linear_kernel,
        )
        num_blocks = self._kv_bytes(self._loaded) // kv_block_bytes(self._loaded.stage, settings.block_size)
        return ShardReport(self._loaded.parameter_bytes, num_blocks, 0.0, linear_kernel=str(self._loaded.kernel))

    def allocate(self, limits: EngineLimits) -> None:
        """See ShardEngine."""
        assert self._loaded is not None
        assert self._communicator is not None
        self._runner = ModelRunner(self._loaded.stage, limits, self._communicator, self._device)

    def run(self, loop: ShardLoop) -> None:
        """See ShardEngine."""
        assert self._runner is not None
        loop.run(StepInput, self._runner)

    def _kv_bytes(self, loaded: LoadedStage) -> int:
        settings = self._settings
        if settings.kv_cache_bytes is not None:
            return settings.kv_cache_bytes
        free, total = torch.cuda.mem_get_info(self._device)
        allowed = total * settings.gpu_memory_utilization - torch.cuda.memory_reserved(self._device)
        return max(0, min(int(allowed), free) - self._activation_bytes(loaded))

    def _activation_bytes(self, loaded: LoadedStage) -> int:
        """A generous bound of what one step needs beside weights and cache, in bytes."""
        config = loaded.stage.config
        width = 8 * config.hidden_size + 4 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
        logits = 8 * config.vocab_size * min(self._settings.max_num_batched_tokens, 512)
        return int(self._settings.max_num_batched_tokens * width * loaded.stage.dtype.itemsize + logits)
