"""What a step does that cannot be computed: it fails alone, or its process ends."""

from typing import cast

import pytest
import torch
from torch import Tensor

from serve_app.engine.batch_runner import BatchRunner
from serve_app.engine.tensors import to_data
from serve_app.errors import PeerLostError
from serve_app.models.batch_stage import BatchStage
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.types.shards import ShardSpec
from serve_app.types.steps import BatchStep
from serve_app.types.tensors import TensorSpec
from tests.fakes_memory import FakeMemory

LONE = ShardSpec(stage=0, num_stages=1, rank=0, num_ranks=1, first_layer=0, end_layer=0)


class Stage:
    """Gives back its input, or raises."""

    inputs = outputs = {"x": TensorSpec("float32", ("batch",))}  # noqa: RUF012

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def forward(self, inputs: dict[str, Tensor], _hidden: object) -> dict[str, Tensor]:
        if self._error is not None:
            raise self._error
        return inputs


def run_with(error: Exception | None) -> str | None:
    stages = [cast(BatchStage, Stage(error))]
    output = BatchRunner(stages, LONE, LoneCommunicator(), torch.device("cpu")).run(
        BatchStep(3, 0, {"x": to_data(torch.ones(2))})
    )
    assert output is not None
    assert output.step_id == 3
    return output.error


def test_what_a_module_raises_fails_its_step_and_quotes_nothing() -> None:
    assert run_with(None) is None
    assert run_with(ValueError("a secret")) == "ValueError"


def test_a_broken_device_ends_the_process() -> None:
    with pytest.raises(RuntimeError, match="broke the device: AcceleratorError"):
        run_with(torch.AcceleratorError("CUDA error: device-side assert triggered"))


def test_a_lost_shard_ends_the_run_and_fails_no_step() -> None:
    with pytest.raises(PeerLostError):
        run_with(PeerLostError("another shard of the group is gone"))


def test_a_step_without_memory_fails_alone_and_gives_back_what_it_held() -> None:
    memory = FakeMemory(total=1)
    stages = [cast(BatchStage, Stage(torch.OutOfMemoryError("CUDA out of memory; a secret")))]
    runner = BatchRunner(stages, LONE, LoneCommunicator(), torch.device("cpu"), memory)
    output = runner.run(BatchStep(3, 0, {"x": to_data(torch.ones(2))}))
    assert output is not None
    assert output.error is not None
    assert output.error.startswith("OutOfMemoryError: the GPU had no memory for the step; send shorter inputs")
    assert "secret" not in output.error
    assert memory.calls == ["release"]
