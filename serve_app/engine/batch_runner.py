"""One shard's part of a batch step: entries joined by the Router in, their outputs out."""

import logging

import torch
from torch import Tensor

from serve_app.engine.busy_time import HostBusyTime
from serve_app.engine.device_memory import CudaMemory, DeviceMemory
from serve_app.engine.gradient_step import GradientSteps
from serve_app.engine.step_failures import OutputError, told
from serve_app.engine.tensors import to_data, to_tensor
from serve_app.errors import PeerLostError
from serve_app.models.batch_stage import BatchStage
from serve_app.models.torch_dtypes import DTYPE_NAMES
from serve_app.parallel.communicator import Communicator, StepFailedError
from serve_app.types.shards import ShardSpec
from serve_app.types.steps import BatchStep, BatchStepOutput
from serve_app.types.tensors import GRADIENT_OUTPUTS

logger = logging.getLogger(__name__)


class BatchRunner:
    """Runs the stages of one shard, one for each model. All shards of a group run the same steps in the same order."""

    def __init__(
        self,
        stages: list[BatchStage],
        shard: ShardSpec,
        communicator: Communicator,
        device: torch.device,
        memory: DeviceMemory | None = None,
    ) -> None:
        """memory: of a device whose memory is counted; None: that of the GPU, where there is one."""
        self._stages = stages
        self._shard = shard
        self._communicator = communicator
        self._device = device
        self.busy = HostBusyTime()  # each step is waited for, on a GPU too
        self._gradients = GradientSteps(shard, communicator, self.busy)
        self._memory = CudaMemory(device) if memory is None and device.type == "cuda" else memory

    @torch.inference_mode()
    def run(self, step: BatchStep) -> BatchStepOutput | None:
        """Run one step; the last stage's first rank gives the outputs, the others None.

        What the module raises fails the step, not the shard; only the kind of the exception is reported, because its
        message may quote the input. Where several ranks must stay in step it ends the group, and so does the loss of
        another shard.
        """
        try:
            return self._run(step)
        finally:
            self.busy.end()

    def _run(self, step: BatchStep) -> BatchStepOutput | None:
        stage = self._stages[step.model]
        try:
            outputs = self._gradients_of(step, stage) if step.has_gradients else self._forward(step, stage)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # so that what a kernel finds wrong is this step's
        except StepFailedError as failure:
            return self._fail(step, failure.kind)
        except PeerLostError:
            raise
        except Exception as error:  # a user's module may raise whatever it likes
            if isinstance(error, torch.AcceleratorError):  # nothing runs on the device in this process any more
                raise RuntimeError(f"a step broke the device: {type(error).__name__}") from None
            if self._shard.num_ranks > 1:
                raise RuntimeError(f"a step failed on one of several ranks: {type(error).__name__}") from None
            logger.error("step failed model=%d error=%s", step.model, type(error).__name__)
            failure_kind = told(error)
        else:
            return self._hand_on(step, stage, outputs)
        if self._memory is not None:  # the traceback is gone, and the step's tensors with it
            self._memory.release()
        return self._fail(step, failure_kind)

    def _forward(self, step: BatchStep, stage: BatchStage) -> dict[str, Tensor]:
        hidden = None if self._shard.is_first else self._communicator.receive_named()
        self.busy.begin()
        outputs = stage.forward(self._inputs(step), hidden)
        _check(stage, outputs, is_last=self._shard.is_last)
        return outputs

    def _gradients_of(self, step: BatchStep, stage: BatchStage) -> dict[str, Tensor]:
        # Autograd takes no tensor made in inference mode, and cuDNN has no backward of LSTMs outside training.
        with torch.inference_mode(False), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            return self._gradients.run(stage, self._inputs(step))

    def _hand_on(self, step: BatchStep, stage: BatchStage, outputs: dict[str, Tensor]) -> BatchStepOutput | None:
        if not self._shard.is_last:
            if not step.has_gradients:  # whose stages have told one another all
                self._communicator.send_named(outputs)
            return None
        if self._shard.rank != 0:
            return None
        names = GRADIENT_OUTPUTS if step.has_gradients else stage.outputs
        return BatchStepOutput(step.step_id, {name: to_data(outputs[name]) for name in names})

    def _inputs(self, step: BatchStep) -> dict[str, Tensor]:
        return {name: to_tensor(data, self._device) for name, data in step.inputs.items()}

    def _fail(self, step: BatchStep, kind: str) -> BatchStepOutput | None:
        """Let the next stage, or the Router, know that there is no output."""
        if self._shard.is_last:
            return BatchStepOutput(step.step_id, {}, kind)
        if not step.has_gradients:
            self._communicator.send_failure(kind)
        return None


def _check(stage: BatchStage, outputs: dict[str, Tensor], *, is_last: bool) -> None:
    if not is_last:
        return
    for name, spec in stage.outputs.items():
        if name not in outputs:
            raise OutputError(f"output {name} is missing among {sorted(outputs)}")
        tensor = outputs[name]
        fits = tensor.dim() == len(spec.shape) and all(
            isinstance(size, str) or size == actual for size, actual in zip(spec.shape, tensor.shape, strict=True)
        )
        if not fits or DTYPE_NAMES.get(tensor.dtype) != spec.dtype:
            raise OutputError(
                f"output {name} is {tensor.dtype} {list(tensor.shape)}, declared {spec.dtype} {list(spec.shape)}"
            )
