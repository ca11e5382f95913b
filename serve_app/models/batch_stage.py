"""What the engine asks of a model that is done with an entry after one step: encoders, and any nn.Module."""

from typing import Protocol

from torch import Tensor, nn

from serve_app.types.tensors import TensorSpec

BATCH = "batch"  # the varying dimension whose size is an item's number of entries
TOKENS = "tokens"  # the varying dimension of packed tokens


class BatchStage(Protocol):
    """One stage of such a model, loaded. Entries are joined along the batch dimension, packed, never padded."""

    inputs: dict[str, TensorSpec]  # of the whole model, the same on every stage
    outputs: dict[str, TensorSpec]
    first_part: int  # parts (of an encoder: layers) [first_part, end_part) are this stage's
    end_part: int
    parameter_bytes: int
    linear_kernel: str  # see ShardReport

    @property
    def root(self) -> nn.Module:
        """What holds all modules that this stage runs."""
        ...

    @property
    def token_embedding(self) -> nn.Module | None:
        """What looks the vectors of input_ids up, on the first stage; None: there is no one module that does."""
        ...

    @property
    def column_layers(self) -> list[nn.Module] | None:
        """Layers of which each tensor rank has columns of its own, so that their inputs' gradients are sums over ranks.

        Empty on one rank; None: ranks share more than such layers and those that add up.
        """
        ...

    def forward(self, inputs: dict[str, Tensor], hidden: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Run this stage.

        inputs: as `self.inputs` says, of all entries of the step, on every stage; hidden: what the previous stage
        gave, None on the first -> what the next stage needs, or on the last stage the outputs as `self.outputs` says.
        """
        ...
