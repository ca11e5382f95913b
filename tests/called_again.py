"""Takes the place of CUDA graphs where there is no GPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from serve_app.engine.decode_graphs import Replay
from serve_app.engine.launched_step import LaunchedStep
from serve_app.engine.model_runner import ModelRunner
from serve_app.types.steps import StepInput


class CalledAgain:
    """Captures a function by keeping it: a replay calls it again, and writes where the first call has written.

    As graphs that share a pool may, each replay overwrites what the others have given.
    """

    def __init__(self) -> None:
        self.num_replays = 0
        self._outputs: list[Tensor] = []

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        """See decode_graphs.Capture."""
        kept = function().clone()
        self._outputs.append(kept)

        def replay() -> Tensor:
            self.num_replays += 1
            output = function()
            for other in self._outputs:
                other.fill_(torch.nan)
            return kept.copy_(output)

        return replay


class PoisonedBuffers(ModelRunner):
    """Fills what a captured step reads with nonsense after each step: what the next one does not write, fails it."""

    def launch(self, step: StepInput) -> LaunchedStep | None:
        """See ModelRunner."""
        launched = super().launch(step)
        assert self._graphs is not None
        buffers = self._graphs.buffers
        with torch.inference_mode():
            buffers.fill(torch.full((5 * buffers.max_rows,), 1 << 40))
            if buffers.hidden is not None:
                buffers.hidden.fill_(torch.nan)
        return launched
