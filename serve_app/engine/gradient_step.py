"""Steps that give slopes of a model's output along paths of its token embeddings, for integrated gradients.

Sundararajan, Taly and Yan, arXiv:1703.01365. Over stages it is a chain of vector-Jacobian products: hidden states go
forward, gradients of them go back, and what the first stage makes of the last of these goes forward to the Router.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from serve_app.engine.busy_time import HostBusyTime
from serve_app.engine.step_failures import told
from serve_app.models.batch_stage import BatchStage
from serve_app.models.linear_kernels import FloatLinear
from serve_app.models.packed_linear import PackedLinear
from serve_app.models.quantization import QuantizedEmbedding
from serve_app.models.token_path import TokenPath
from serve_app.parallel.communicator import Communicator, StepFailedError
from serve_app.parallel.summed_gradients import summed_gradients
from serve_app.types.shards import ShardSpec
from serve_app.types.tensors import PATH_BASELINE, PATH_POSITION, PATH_TARGET

MAX_TOKENS = 1024  # whose activations are held at once, over all layers of a stage, beyond one entry's
_OWN_INPUTS = {"lengths": "batch", PATH_BASELINE: "tokens", PATH_POSITION: "batch", PATH_TARGET: "batch"}


def gradient_problem(stage: BatchStage, shard: ShardSpec) -> str:
    """Why a stage gives no gradients; "": it does."""
    for module in stage.root.modules():
        is_quantized = isinstance(module, PackedLinear) and not isinstance(module, FloatLinear)
        if is_quantized or isinstance(module, QuantizedEmbedding):
            return "its weights are quantized, and their kernels have no gradients"
    if shard.num_ranks > 1 and stage.column_layers is None:
        return "its tensor ranks (parallel.tensor) share more than the columns and rows of its layers"
    if "input_ids" not in stage.inputs:
        return "it takes no tokens"
    if shard.is_first and stage.token_embedding is None:
        return "there is not exactly one nn.Embedding in it"
    return ""


class GradientSteps:
    """Runs such steps on one shard; all shards of a group run the same ones."""

    def __init__(self, shard: ShardSpec, communicator: Communicator, busy: HostBusyTime) -> None:
        self._shard = shard
        self._communicator = communicator
        self._busy = busy

    def run(self, stage: BatchStage, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of the step on the last stage, see GRADIENT_OUTPUTS; on others nothing.

        inputs: those of the stage and PATH_*, of all entries. Raises what a stage raises, StepFailedError when another
        stage has failed: the others know then.
        """
        slopes, values = [], []
        with summed_gradients(stage.column_layers or [], self._communicator):
            for batch in _batches(stage, inputs):
                one = self._run_batch(stage, batch)
                if self._shard.is_last:
                    slopes.append(one["attributions"])
                    values.append(one["value"])
        return {"attributions": torch.cat(slopes), "value": torch.cat(values)} if self._shard.is_last else {}

    def _run_batch(self, stage: BatchStage, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        shard, communicator = self._shard, self._communicator
        hidden = None if shard.is_first else self._from_previous()
        self._busy.begin()
        try:
            part = _StagePart(stage, shard, inputs, hidden)
        except Exception as error:
            self._tell_both(error)
            raise
        gradients: dict[str, Tensor] = {}
        if not shard.is_last:
            communicator.send_named({name: tensor.detach() for name, tensor in part.outputs.items()})
            gradients = self._from_next()
        try:
            before = part.backward(gradients)
        except Exception as error:
            self._tell_both(error)
            raise
        if shard.is_first:
            slopes = before
        else:
            communicator.send_named_back(before)
            slopes = self._from_previous()
        if not shard.is_last:
            communicator.send_named(slopes)
            return {}
        return {**slopes, "value": part.value}

    def _from_previous(self) -> dict[str, Tensor]:
        try:
            return self._communicator.receive_named()
        except StepFailedError as failure:
            if not self._shard.is_last:
                self._communicator.send_failure(failure.kind)
            raise

    def _from_next(self) -> dict[str, Tensor]:
        try:
            return self._communicator.receive_named_back()
        except StepFailedError as failure:
            if not self._shard.is_first:
                self._communicator.send_failure_back(failure.kind)
            raise

    def _tell_both(self, error: Exception) -> None:
        if not self._shard.is_last:
            self._communicator.send_failure(told(error))
        if not self._shard.is_first:
            self._communicator.send_failure_back(told(error))


class _StagePart:
    """A stage's forward of one batch, and its backward."""

    def __init__(
        self, stage: BatchStage, shard: ShardSpec, inputs: dict[str, Tensor], hidden: dict[str, Tensor] | None
    ) -> None:
        own = {name: inputs[name] for name in stage.inputs}
        self._path: TokenPath | None = None
        if hidden is None:
            positions = torch.repeat_interleave(inputs[PATH_POSITION], inputs["lengths"])  # [T]
            self._path = TokenPath(stage, own, inputs[PATH_BASELINE], positions)
            self.outputs = self._path.forward()
            self._leaves = {"point": self._path.points[0]}
        else:
            self._leaves = {name: one.requires_grad_() for name, one in hidden.items() if one.is_floating_point()}
            self.outputs = stage.forward(own, {**hidden, **self._leaves})
        self._is_last = shard.is_last
        self.value = torch.empty(0)
        if shard.is_last:
            (numbers,) = (self.outputs[name] for name in stage.outputs)  # [B, C]
            chosen = numbers.float().gather(1, inputs[PATH_TARGET][:, None])[:, 0]  # [B]
            self.outputs = {"value": chosen}
            self.value = chosen.detach()

    def backward(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of the outputs -> of what came in; of the first stage slopes [T] under `attributions`."""
        if self._is_last:
            gradients = {"value": torch.ones_like(self.value)}
        roots = [name for name, tensor in self.outputs.items() if tensor.requires_grad]
        found = torch.autograd.grad(
            [self.outputs[name] for name in roots],
            list(self._leaves.values()),
            [gradients[name] for name in roots],
            allow_unused=True,
            materialize_grads=True,
        )
        self.outputs = {}  # and with them what the forward has kept
        if self._path is not None:
            return {"attributions": self._path.slopes(found[0])}
        return dict(zip(self._leaves, found, strict=True))


def _batches(stage: BatchStage, inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Entries in their order, as many together as have MAX_TOKENS tokens; at least one."""
    lengths: list[int] = inputs["lengths"].tolist()
    first = first_token = 0
    while first < len(lengths):
        end, num_tokens = first + 1, lengths[first]
        while end < len(lengths) and num_tokens + lengths[end] <= MAX_TOKENS:
            num_tokens += lengths[end]
            end += 1
        places = {"batch": slice(first, end), "tokens": slice(first_token, first_token + num_tokens)}
        labels = {**{name: spec.shape[0] for name, spec in stage.inputs.items()}, **_OWN_INPUTS}
        yield {name: tensor[places[str(labels[name])]] for name, tensor in inputs.items()}
        first, first_token = end, first_token + num_tokens
