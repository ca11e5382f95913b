"""What runs the steps of a shard."""

from typing import Protocol, TypeVar

from serve_app.types.steps import BatchStep, BatchStepOutput, StepInput, StepOutput

StepT = TypeVar("StepT", bound=StepInput | BatchStep, contravariant=True)


class StepRunner(Protocol[StepT]):
    """Runs one step."""

    def run(self, step: StepT) -> StepOutput | BatchStepOutput | None:
        """The step's output on the shard that has it, None on the others."""
        ...
