"""A step of a user's module whose index is out of range, in a process of its own: on CUDA its device is lost.

`python -m bench.gpu_bad_index DEVICE` prints an Outcome as JSON.
"""

import json
import sys
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from serve_app.engine.batch_runner import BatchRunner
from serve_app.engine.tensors import to_data
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.types.shards import ShardSpec
from serve_app.types.steps import BatchStep
from serve_app.types.tensors import TensorSpec

_NUM_ENTRIES = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the step, and of one behind it; None: none could be run."""

    step_error: str | None  # the step fails, and the shard goes on
    shard_error: str | None  # the shard ends
    next_error: str | None = None


class Lookup:
    """BatchStage of a table that is read where its input says."""

    inputs = {"index": TensorSpec("int64", ("batch",))}  # noqa: RUF012
    outputs = {"value": TensorSpec("float32", ("batch",))}  # noqa: RUF012
    first_part, end_part, parameter_bytes, linear_kernel = 0, 1, 0, ""
    root, token_embedding = nn.Module(), None
    column_layers: list[nn.Module] = []  # noqa: RUF012

    def __init__(self, device: torch.device) -> None:
        self._table = torch.arange(_NUM_ENTRIES, dtype=torch.float32, device=device)

    def forward(self, inputs: dict[str, Tensor], _hidden: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """See BatchStage."""
        return {"value": self._table[inputs["index"]]}


def try_bad_index(device: torch.device) -> Outcome:
    """Run a step that reads past the table's end, and a good one behind it."""
    shard = ShardSpec(0, 1, 0, 1, 0, 1)
    runner = BatchRunner([Lookup(device)], shard, LoneCommunicator(), device)
    try:
        failed = runner.run(_step(0, _NUM_ENTRIES))
    except RuntimeError as error:
        return Outcome(None, str(error))
    assert failed is not None
    good = runner.run(_step(1, _NUM_ENTRIES - 1))
    assert good is not None
    return Outcome(failed.error, None, good.error)


def _step(step_id: int, index: int) -> BatchStep:
    return BatchStep(step_id, 0, {"index": to_data(torch.tensor([index]))})


if __name__ == "__main__":
    print(json.dumps(asdict(try_bad_index(torch.device(sys.argv[1])))), flush=True)
