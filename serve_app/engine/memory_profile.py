"""How much memory a model's largest steps take, measured by running them."""

import gc
import logging
from collections.abc import Callable

import torch

from serve_app.engine.device_memory import DeviceMemory, MemoryUse
from serve_app.engine.largest_steps import largest_steps, num_step_blocks
from serve_app.engine.step_runner import StepRunner
from serve_app.errors import ConfigError
from serve_app.types.shards import EngineLimits, ShardSettings
from serve_app.types.steps import StepInput

logger = logging.getLogger(__name__)

RunnerMaker = Callable[[EngineLimits], StepRunner[StepInput]]


def limits_to_measure(settings: ShardSettings, max_num_blocks: int) -> EngineLimits:
    """Limits of the largest steps; no context is longer than the cache that there would be if steps took nothing.

    Shards of a group, which have room for different numbers of blocks, run steps of the same numbers of tokens.
    """
    max_tokens = max(max_num_blocks * settings.block_size, settings.max_num_batched_tokens)
    return EngineLimits(
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_model_len=min(settings.max_model_len or max_tokens, max_tokens),
        block_size=settings.block_size,
        num_blocks=0,
    )


def measure_memory(
    make_runner: RunnerMaker, limits: EngineLimits, vocab_size: int, block_bytes: int, memory: DeviceMemory
) -> MemoryUse:
    """Run the largest steps on a small KV cache, which is gone afterwards. All shards of a group do it together.

    make_runner: makes what runs steps, with a cache of num_blocks blocks of block_bytes; those of `limits` are not
    looked at. Raises ConfigError when there is no room even for that.
    """
    memory.release()
    held_bytes = memory.held_bytes()
    num_blocks = num_step_blocks(limits)
    try:
        taken_bytes = _run(make_runner, limits.with_blocks(num_blocks), vocab_size, memory) - held_bytes
    except torch.OutOfMemoryError as error:
        raise ConfigError(_too_large(limits, memory.total_bytes(), held_bytes), field="engine") from error
    gc.collect()  # what was captured of the runner may refer to itself
    memory.release()
    step_bytes = max(0, taken_bytes - num_blocks * block_bytes)
    use = MemoryUse(memory.total_bytes(), memory.free_bytes(), memory.held_bytes(), step_bytes)
    logger.info(
        "memory measured total_bytes=%d free_bytes=%d held_bytes=%d step_bytes=%d step_tokens=%d step_sequences=%d",
        use.total_bytes,
        use.free_bytes,
        use.held_bytes,
        use.step_bytes,
        limits.max_num_batched_tokens,
        limits.max_num_seqs,
    )
    return use


def _run(make_runner: RunnerMaker, limits: EngineLimits, vocab_size: int, memory: DeviceMemory) -> int:
    """Bytes held with a runner, and what its steps took beside it for a while.

    Captured graphs hold memory that no tensor uses, so what is kept is told from what is held.
    """
    runner = make_runner(limits)
    memory.start_peak()
    for step in largest_steps(limits, vocab_size):
        runner.run(step)
    passing_bytes = memory.peak_bytes() - memory.used_bytes()
    memory.release()
    return memory.held_bytes() + passing_bytes


def _too_large(limits: EngineLimits, total_bytes: int, weight_bytes: int) -> str:
    return (
        f"a step of engine.max_num_batched_tokens={limits.max_num_batched_tokens} and "
        f"engine.max_num_seqs={limits.max_num_seqs} up to max_model_len={limits.max_model_len} does not fit the GPU of "
        f"{total_bytes} bytes beside weights of {weight_bytes}; lower them, or split the model over more shards"
    )
