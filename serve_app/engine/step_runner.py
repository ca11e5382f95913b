"""What runs the steps of a shard."""

from typing import Protocol, TypeVar

from serve_app.types.steps import BatchStep, BatchStepOutput, StepInput, StepOutput

StepT = TypeVar("StepT", bound=StepInput | BatchStep, contravariant=True)


class StepRunner(Protocol[StepT]):
    """Runs one step."""

    def run(self, step: StepT) -> StepOutput | BatchStepOutput | None:
        """The step's output on the shard that has it, None on the others."""
        ...


class PendingOutput(Protocol):
    """The output of a step that the device may still be at."""

    def output(self) -> StepOutput:
        """Wait for it; called once, by any thread."""
        ...


class StepLauncher(Protocol):
    """Runs one step without waiting for the device, so that the next one may be launched behind it."""

    def launch(self, step: StepInput) -> PendingOutput | None:
        """What will be the step's output on the shard that has it, None on the others."""
        ...
