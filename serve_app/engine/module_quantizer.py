"""Which parameters of an nn.Module are quantized, and the kernels that take their modules' places.

A linear layer or an embedding that is exactly torch's gets a kernel. Others, an LSTM say, read their weights
themselves: those are quantized in their files only, and dequantized when they are loaded.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from serve_app.checkpoints.module_files import SCALE_SUFFIX
from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.engine.tensor_file import TensorReader
from serve_app.errors import ConfigError
from serve_app.models.quantization import QuantizedEmbedding, form_of, kind_of, make_linear, take_hooks
from serve_app.models.quantized_kernels import KernelTally, decide_kernel
from serve_app.models.quantized_weight import QuantizedWeight, quantize_weight
from serve_app.models.torch_model import ModuleStage
from serve_app.types.shards import LoadQuantization, WeightScheme

# Their forward hands the weights of their linear layers to one fused call.
_READ_BY_PARENT = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


class ModuleQuantizer:
    """Reads what is quantized in the files, and quantizes what is asked for."""

    def __init__(self, stage: ModuleStage, stored: Mapping[str, WeightScheme], wanted: LoadQuantization | None) -> None:
        self._stage = stage
        self._stored = stored
        self._wanted = wanted
        self._tally = KernelTally()
        held: dict[int, int] = {}
        for parameter in stage.own_parameters().values():
            held[id(parameter)] = held.get(id(parameter), 0) + 1
        self._num_names = held

    def is_stored(self, tensor_name: str) -> bool:
        """Whether the files hold a tensor quantized."""
        return tensor_name in self._stored

    def read(
        self, name: str, tensor_name: str, meta: Tensor, headers: Mapping[str, TensorHeader], reader: TensorReader
    ) -> QuantizedWeight:
        """A quantized tensor. Raises ConfigError when its tensors do not fit."""
        expected = {tensor_name: ("I8", tuple(meta.shape)), f"{tensor_name}{SCALE_SUFFIX}": ("F32", (len(meta), 1))}
        for one, (dtype, shape) in expected.items():
            header = headers.get(one)
            if header is None or header.dtype != dtype or tuple(header.shape) != shape:
                found = "missing" if header is None else f"{header.dtype} {list(header.shape)}"
                raise ConfigError(
                    f"quantized parameter {name} needs {one} as {dtype} {list(shape)}, which is {found}; quantize the "
                    "model again",
                    field="source",
                )
        values, scales = torch.empty(meta.shape, dtype=torch.int8), torch.empty(len(meta), 1)
        reader.read(headers[tensor_name], values, None, ())
        reader.read(headers[f"{tensor_name}{SCALE_SUFFIX}"], scales, None, ())
        if not bool(torch.isfinite(scales).all()) or bool((scales < 0).any()):
            raise ConfigError(f"{name}: a scale is negative or not finite; quantize again", field="source")
        return QuantizedWeight(values, scales, 8)

    def scheme_of(self, tensor_name: str) -> WeightScheme:
        """Of a stored tensor."""
        return self._stored[tensor_name]

    def has_kernel(self, name: str, meta: nn.Parameter) -> bool:
        """Whether a parameter's module is one that a kernel can stand for."""
        module_name, _, leaf = name.rpartition(".")
        owner = self._stage.module.get_submodule(module_name)
        parent = self._stage.module.get_submodule(module_name.rpartition(".")[0])
        if leaf != "weight" or self._num_names.get(id(meta), 1) > 1 or isinstance(parent, _READ_BY_PARENT):
            return False
        return type(owner) is nn.Linear or (type(owner) is nn.Embedding and owner.max_norm is None)

    def is_wanted(self, name: str, meta: nn.Parameter) -> bool:
        """Whether a parameter is to be quantized now that it is read."""
        wanted = self._wanted
        if wanted is None or not meta.is_floating_point() or not self.has_kernel(name, meta):
            return False
        module_name = name.rpartition(".")[0]
        if any(module_name == one or module_name.endswith(f".{one}") for one in wanted.ignored):
            return False
        is_embedding = isinstance(self._stage.module.get_submodule(module_name), nn.Embedding)
        return wanted.has_embedding if is_embedding else True

    def quantize(self, name: str, matrix: Tensor) -> None:
        """Quantize a matrix [N, K] as it was asked for, and put its kernel in place. Raises ConfigError."""
        assert self._wanted is not None
        scheme = self._wanted.scheme
        if scheme.group_size is not None and matrix.shape[1] % scheme.group_size:
            raise ConfigError(
                f"quantization.group_size={scheme.group_size} does not divide the {matrix.shape[1]} inputs of {name}; "
                "use another, or ignore it",
                field="quantization",
            )
        self.put_kernel(name, quantize_weight(matrix, scheme), scheme, matrix.dtype)

    def put_kernel(self, name: str, weight: QuantizedWeight, scheme: WeightScheme, dtype: torch.dtype) -> None:
        """In the place of the parameter's module; its bias is set when it is read. dtype: of an embedding's rows."""
        module_name = name.rpartition(".")[0]
        old = self._stage.module.get_submodule(module_name)
        new: nn.Module
        if isinstance(old, nn.Embedding):
            new = QuantizedEmbedding(weight, dtype)
        else:
            form, kind = form_of(weight), kind_of(weight.values.device)
            self._tally.add(module_name, form, kind, decide_kernel(scheme, form, kind))
            new = make_linear(weight, None, scheme)
        take_hooks(new, old)
        self._stage.replace(module_name, new.eval())

    def finish(self) -> None:
        """Once all is read: tell the log which kernels there are."""
        self._tally.log()
