"""A step that the device has no memory for fails with its requests, and the shard goes on."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from serve_app.engine.step_runner import PendingOutput, StepLauncher
from serve_app.types.steps import StepInput, StepOutput

logger = logging.getLogger(__name__)


class MemoryGuard:
    """StepLauncher of a lone shard around another. Memory is asked for while a step is launched, not while it runs.

    With several shards the others would wait for the tensors of the one that failed: there the group ends instead.
    """

    def __init__(self, launcher: StepLauncher, release: Callable[[], None]) -> None:
        """release: gives memory back that is not in use."""
        self._launcher = launcher
        self._release = release

    def launch(self, step: StepInput) -> PendingOutput | None:
        """What will be the step's output, or one that says why there are no tokens."""
        try:
            return self._launcher.launch(step)
        except torch.OutOfMemoryError:
            pass  # its traceback holds the step's tensors: what is freed is given back once it is gone
        self._release()
        logger.error("step out of memory sequences=%d tokens=%d", len(step.slot_rows), len(step.token_ids))
        return _FailedStep(StepOutput(step.step_id, [], error=_told(step)))


@dataclass(frozen=True, slots=True)
class _FailedStep:
    """PendingOutput of a step that was not launched."""

    failure: StepOutput

    def output(self) -> StepOutput:
        """Why there are no tokens."""
        return self.failure


def _told(step: StepInput) -> str:
    return (
        f"the GPU had no memory for a step of {len(step.token_ids)} tokens of {len(step.slot_rows)} requests, this one "
        "among them; send fewer at once, or lower engine.max_num_batched_tokens, engine.max_num_seqs or "
        "engine.gpu_memory_utilization"
    )
