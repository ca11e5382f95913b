"""A step that the device has no memory for fails with its requests, and the shard goes on."""

import logging
from collections.abc import Callable

import torch

from serve_app.engine.step_runner import StepRunner
from serve_app.types.steps import BatchStepOutput, StepInput, StepOutput

logger = logging.getLogger(__name__)


class MemoryGuard:
    """StepRunner of a lone shard around another.

    With several shards the others would wait for the tensors of the one that failed: there the group ends instead.
    """

    def __init__(self, runner: StepRunner[StepInput], release: Callable[[], None]) -> None:
        """release: gives memory back that is not in use."""
        self._runner = runner
        self._release = release

    def run(self, step: StepInput) -> StepOutput | BatchStepOutput | None:
        """The step's output, or one that says why there are no tokens."""
        try:
            return self._runner.run(step)
        except torch.OutOfMemoryError:
            pass  # its traceback holds the step's tensors: what is freed is given back once it is gone
        self._release()
        logger.error("step out of memory sequences=%d tokens=%d", len(step.slot_rows), len(step.token_ids))
        return StepOutput(step.step_id, [], error=_told(step))


def _told(step: StepInput) -> str:
    return (
        f"the GPU had no memory for a step of {len(step.token_ids)} tokens of {len(step.slot_rows)} requests, this one "
        "among them; send fewer at once, or lower engine.max_num_batched_tokens, engine.max_num_seqs or "
        "engine.gpu_memory_utilization"
    )
