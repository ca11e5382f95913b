"""A step that the device may still be at: its tokens are read when they are wanted."""

from dataclasses import dataclass

from torch import Tensor

from serve_app.engine.host_staging import Event
from serve_app.engine.sampler import DrawnTokens
from serve_app.engine.token_logprobs import LogprobColumns, followed_logprobs
from serve_app.types.generation import TokenLogprobs
from serve_app.types.steps import StepOutput


@dataclass(frozen=True, slots=True)
class PromptColumns:
    """Log-probabilities of one sequence's prompt targets, in pieces."""

    pieces: list[LogprobColumns]
    num_top: int

    @classmethod
    def of(cls, logits: Tensor, followed_by: Tensor, num_top: int) -> "PromptColumns":
        """On their way to the host: logits [N, V] of the targets, followed_by [N] int64."""
        return cls([one.to_host() for one in followed_logprobs(logits, followed_by, num_top)], num_top)

    def read(self) -> list[TokenLogprobs]:
        """As lists."""
        return [entry for one in self.pieces for entry in one.to_lists([self.num_top] * len(one.tokens))]


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """What a step has drawn, on its way to the host."""

    step_id: int
    drawn: DrawnTokens | None
    prompts: dict[int, PromptColumns]  # by index of the sequence
    arrival: Event | None  # None: all is there

    def output(self) -> StepOutput:
        """Wait for it, then read it; for any one thread."""
        if self.arrival is not None:
            self.arrival.synchronize()
        prompts = {index: one.read() for index, one in self.prompts.items()}
        if self.drawn is None:
            return StepOutput(self.step_id, [], None, prompts)
        sampled = self.drawn.read()
        return StepOutput(self.step_id, sampled.token_ids, sampled.logprobs, prompts)
