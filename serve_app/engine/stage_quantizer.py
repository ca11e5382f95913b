"""Which weights of a stage are quantized, and the kernels that take their modules' places."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from serve_app.architectures.tensor_names import layer_of
from serve_app.checkpoints.quantized_modules import CheckpointQuantization
from serve_app.checkpoints.stored_weights import StoredWeight, check_stored, scheme_of_stored
from serve_app.engine.quantized_tensors import read_quantized
from serve_app.engine.tensor_file import TensorReader
from serve_app.errors import ConfigError
from serve_app.models.checkpoint_keys import Source
from serve_app.models.cut_stage import CutStage
from serve_app.models.quantization import QuantizedEmbedding, form_of, join_linears, kind_of, make_linear, take_hooks
from serve_app.models.quantized_kernels import KernelTally, decide_kernel
from serve_app.models.quantized_weight import QuantizedWeight, quantize_weight
from serve_app.parallel.tensor_parallel import Part
from serve_app.types.shards import LoadQuantization, WeightScheme


@dataclass(frozen=True, slots=True)
class Quantizations:
    """How a checkpoint is quantized already, and what is to be quantized while it is read; None: not at all."""

    checkpoint: CheckpointQuantization | None = None
    wanted: LoadQuantization | None = None


class StageQuantizer:
    """Takes the weights that are quantized, one at a time, and puts kernels in their modules' places at once.

    So no more than one matrix is held as it was read.
    """

    def __init__(
        self,
        stage: CutStage,
        quantizations: Quantizations,
        stored: Mapping[str, StoredWeight],
        device: torch.device,
    ) -> None:
        self._model = stage.model
        self._same_input = stage.architecture.same_input
        self._dtype: torch.dtype = next(stage.model.parameters()).dtype
        self._quantizations = quantizations
        self._stored = stored
        self._device = device
        self._tally = KernelTally()
        self._wanted = self._find_wanted(stage)

    def is_stored(self, name: str, sources: Sequence[Source]) -> bool:
        """Whether the checkpoint holds a parameter's tensor quantized. Raises ConfigError where that is not served."""
        is_any = any(source.tensor_name in self._stored for source in sources)
        if is_any and (len(sources) > 1 or sources[0].expert is not None):
            raise ConfigError(f"quantized experts ({name}) are not served; give the unquantized model", field="source")
        if is_any and sources[0].num_chunks > 1:
            raise ConfigError(f"{sources[0].tensor_name} is quantized, and holds several parameters", field="source")
        return is_any

    def read(self, name: str, source: Source, shape: torch.Size, part: Part, reader: TensorReader) -> None:
        """Read a parameter that the checkpoint holds quantized."""
        module = self._model.get_submodule(name.removesuffix(".weight"))
        if not isinstance(module, nn.Linear | nn.Embedding):
            raise ConfigError(f"{name} is quantized and no linear layer or embedding", field="source")
        checkpoint, stored = self._quantizations.checkpoint, self._stored[source.tensor_name]
        scheme = scheme_of_stored(checkpoint, source.tensor_name)
        assert checkpoint is not None, "it has a scheme for the weight"
        check_stored(source.tensor_name, stored, scheme, checkpoint)
        weight = read_quantized(name, stored, scheme, checkpoint.word_layout, shape, part, reader)
        self._put_kernel(name.removesuffix(".weight"), weight.to(self._device), scheme)

    def is_wanted(self, name: str) -> bool:
        """Whether a parameter is to be quantized now that it is read."""
        return name.removesuffix(".weight") in self._wanted

    def quantize(self, name: str, tensor: Tensor) -> None:
        """Quantize a rank's part of a parameter, as the module keeps it."""
        assert self._quantizations.wanted is not None
        scheme = self._quantizations.wanted.scheme
        module_name = name.removesuffix(".weight")
        is_conv = type(self._model.get_submodule(module_name)).__name__ == "Conv1D"  # keeps [in, out]
        matrix = tensor.t().contiguous() if is_conv else tensor
        if scheme.group_size is not None and matrix.shape[1] % scheme.group_size:
            raise ConfigError(
                f"quantization.group_size={scheme.group_size} does not divide the {matrix.shape[1]} inputs of "
                f"{module_name} on one rank; use another",
                field="quantization",
            )
        self._put_kernel(module_name, quantize_weight(matrix, scheme), scheme)

    def finish(self) -> None:
        """Once all is read: layers that read one tensor get one product; the log is told which kernels there are."""
        for module in self._model.modules():
            for names in self._same_input:
                join_linears([getattr(module, name, None) for name in names])
        self._tally.log()

    def _put_kernel(self, name: str, weight: QuantizedWeight, scheme: WeightScheme) -> None:
        """Hooks stay; a bias that is read already comes along, others are set when they are read."""
        old = self._model.get_submodule(name)
        new: nn.Module
        if isinstance(old, nn.Embedding):
            scale = getattr(old, "embed_scale", None)
            new = QuantizedEmbedding(weight, self._dtype, scale if isinstance(scale, Tensor) else None)
        else:
            form, kind = form_of(weight), kind_of(weight.values.device)
            self._tally.add(name, form, kind, decide_kernel(scheme, form, kind))
            bias = getattr(old, "bias", None)
            new = make_linear(weight, None if bias is None or bias.is_meta else bias.detach(), scheme)
        take_hooks(new, old)
        parent, _, leaf = name.rpartition(".")
        setattr(self._model.get_submodule(parent), leaf, new.eval())

    def _find_wanted(self, stage: CutStage) -> set[str]:
        wanted = self._quantizations.wanted
        if wanted is None:
            return set()
        embedding = f"{stage.base_prefix}{stage.architecture.parts.embedding}"
        found = set()
        for name, module in stage.model.named_modules():
            if any(name == ignored or name.endswith(f".{ignored}") for ignored in wanted.ignored):
                continue
            if name == stage.head:
                is_wanted = wanted.has_head
            elif isinstance(module, nn.Embedding):
                is_wanted = wanted.has_embedding and name == embedding
            else:
                is_matrix = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
                is_wanted = is_matrix and layer_of(f"{name}.weight") is not None
            if is_wanted and isinstance(getattr(module, "weight", None), nn.Parameter):
                found.add(name)
        return found
