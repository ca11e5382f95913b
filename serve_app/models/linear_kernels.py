"""Products of floating-point weights on CPU, one small class for each library's kernel.

A weight in bfloat16 or float16 is read at half of float32's cost, if a kernel multiplies it as it lies; the one that
torch takes for it may be ten times slower than another, by the CPU's instructions and the number of rows.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from serve_app.models.compiled.float_product import CompiledProduct
from serve_app.models.compiled.library import CompiledKernels
from serve_app.models.frozen_product import multiply_frozen
from serve_app.models.packed_linear import JoinableLinear, Product, share_product

_LARGEST_HALF = torch.finfo(torch.float16).max


class TorchProduct:
    """What nn.Linear does."""

    def __init__(self, weight: Tensor) -> None:
        """weight [N, K]."""
        self.bias_dtype = weight.dtype
        self._weight = weight

    def multiply(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """See Product."""
        return linear(inputs, self._weight, bias)


class GemvProduct:
    """What nn.Linear does, but one row is multiplied as a vector, for which torch has kernels of its own."""

    def __init__(self, weight: Tensor) -> None:
        """weight [N, K]."""
        self.bias_dtype = weight.dtype
        self._weight = weight

    def multiply(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """See Product."""
        weight = self._weight
        if inputs.numel() != weight.shape[1]:
            return linear(inputs, weight, bias)
        row = inputs.view(-1)
        outputs = torch.mv(weight, row) if bias is None else torch.addmv(bias, weight, row)
        return outputs.view(*inputs.shape[:-1], -1)


class OnednnProduct:
    """oneDNN, its weight laid out in the blocks that its kernels read."""

    def __init__(self, weight: Tensor) -> None:
        """weight [N, K]."""
        self.bias_dtype = weight.dtype
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._multiply: Any = torch.ops.mkldnn._linear_pointwise.default._op

    def multiply(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """See Product."""
        if inputs.requires_grad:
            return multiply_frozen(self, inputs, bias)
        outputs: Tensor = self._multiply(inputs, self._packed, bias, "none", [], "")
        return outputs

    def weight(self) -> Tensor:
        """[N, K], unpacked anew."""
        unpacked: Tensor = self._packed.to_dense()
        return unpacked


class FbgemmHalfProduct:
    """FBGEMM (arXiv:2101.05615): weights in float16, inputs, sums and outputs in float32.

    Numbers of bfloat16 below 6e-5 lose what is less than 3e-8. No row's answer depends on others.
    """

    bias_dtype = torch.float32

    def __init__(self, weight: Tensor) -> None:
        """weight [N, K]."""
        with warnings.catch_warnings():  # torch deprecates the dtypes of its quantized operators, not this operator
            warnings.simplefilter("ignore", UserWarning)
            self._packed = torch.ops.quantized.linear_prepack_fp16(weight.to(torch.float32), None)
        self._multiply: Any = torch.ops.quantized.linear_dynamic_fp16.default._op

    def multiply(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """See Product."""
        if inputs.requires_grad:
            return multiply_frozen(self, inputs, bias)
        outputs: Tensor = self._multiply(inputs.to(torch.float32), self._packed)
        if bias is not None:
            outputs += bias
        return outputs.to(inputs.dtype)

    def weight(self) -> Tensor:
        """[N, K] float32, unpacked anew."""
        unpacked: Tensor = torch.ops.quantized.linear_unpack_fp16(self._packed)[0]
        return unpacked


LIBRARY_KERNELS: Mapping[str, Callable[[Tensor], Product]] = {
    "torch": TorchProduct,
    "gemv": GemvProduct,
    "onednn": OnednnProduct,
    "fbgemm": FbgemmHalfProduct,
}
COMPILED = "compiled"  # our own
KERNELS = (*LIBRARY_KERNELS, COMPILED)
_KEEPING = ("torch", "gemv")  # the weight as it is


def why_no_kernel(name: str, dtype: torch.dtype, compiled: CompiledKernels | None = None) -> str | None:
    """Why this CPU, or this torch, has no such kernel for weights of a dtype; None: it has.

    compiled: those of steps, if there are any.
    """
    if name == COMPILED:
        if compiled is None:
            return "kernels of steps are not compiled here"
        return None if compiled.serve(dtype) else "it multiplies numbers of float32 and bfloat16 only"
    if name == "fbgemm":
        if dtype == torch.float32:
            return "it keeps weights in float16, and would round those of float32"
        return None if "fbgemm" in torch.backends.quantized.supported_engines else "torch was built without FBGEMM"
    if name != "onednn":
        return None
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "torch was built without oneDNN"
    checks = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype in checks and not getattr(torch.ops.mkldnn, checks[dtype])():
        return f"the CPU has no instructions for {str(dtype).removeprefix('torch.')}"
    return None


class FloatLinear(JoinableLinear):
    """One layer, alone or joined with others."""

    def __init__(self, product: Product, like: Tensor, bias: Tensor | None) -> None:
        """like [N, K]: its weight, which is not kept here."""
        super().__init__(product, like.shape[1], like.shape[0], bias)
        self.num_bytes = like.nbytes
        self.weight = like.new_empty(0)  # some models ask for its dtype


def make_product(name: str, weight: Tensor, compiled: CompiledKernels | None = None) -> Product:
    """weight [N, K] on CPU -> its product by a kernel that there is for it, see why_no_kernel."""
    if name != COMPILED:
        return LIBRARY_KERNELS[name](weight)
    assert compiled is not None, "there is such a kernel"
    return CompiledProduct(weight, compiled)


def make_linears(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None], kernel: str, compiled: CompiledKernels | None = None
) -> list[FloatLinear]:
    """Layers that read one tensor, in one product of a kernel.

    weights: [N, K] each, of one dtype on CPU. A kernel that cannot hold their numbers is not taken, but nn.Linear's.
    """
    whole = weights[0] if len(weights) == 1 else torch.cat(list(weights))
    if kernel == "fbgemm" and whole.dtype != torch.float16 and _is_above_half(whole):
        kernel = "torch"
    product = make_product(kernel, whole, compiled)
    linears = [FloatLinear(product, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    if len(linears) > 1:
        share_product(product, linears)
    return linears


def keeps_weight(kernel: str) -> bool:
    """Whether a kernel multiplies by the weight as it is, so that what is tied to it may keep it too."""
    return kernel in _KEEPING


def _is_above_half(weight: Tensor) -> bool:
    return bool(torch.maximum(weight.amax(), -weight.amin()) > _LARGEST_HALF)
