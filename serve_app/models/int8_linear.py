"""Linear layers on CPU whose inputs are rounded to int8 as the weights are: W8A8, a scale for each row and each output.

Rows are divided by scales of their own before the product and multiplied after it, so no row's answer depends on
another's (LLM.int8, arXiv:2208.07339). Layers that read one tensor are joined: it is divided once, and one product
gives the answers of all.

FBGEMM (arXiv:2101.05615), whose fused call rounds its input, multiplies and gives float32; oneDNN where torch was built
without FBGEMM. Without VNNI, products of 8 by 8 bits saturate, and inputs get 7 bits; a probe decides.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from serve_app.models.packed_linear import JoinableLinear, Product, share_product
from serve_app.models.quantized_weight import QuantizedWeight

_SMALLEST = float(np.float32(1e-30))  # a row's largest number is taken to be at least that


class Int8Product(Protocol):
    """A weight [N, K] in the form that one library multiplies by."""

    limit: int  # of the integers that inputs are rounded to

    def multiply(self, rows: Tensor) -> Tensor:
        """rows [..., K] float32 within ±limit -> [..., N] float32: rounded, times the weight with its scales."""

    def weight(self) -> QuantizedWeight:
        """The weight it was made of."""

    def remade(self, weight: QuantizedWeight) -> "Int8Product":
        """Another weight in the same form."""


class FbgemmProduct:
    """x86 CPUs."""

    def __init__(self, weight: QuantizedWeight, limit: int) -> None:
        self.limit = limit
        self._packed = _packed_for_fbgemm(weight)
        # The operator itself: the object around it looks through its arguments for torch.compile, in 20 us.
        self._multiply: Any = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default._op

    def multiply(self, rows: Tensor) -> Tensor:
        """Exact in the integers."""
        products: Tensor = self._multiply(rows, 1.0, self.limit + 1, self._packed)
        return products

    def weight(self) -> QuantizedWeight:
        """The weight, unpacked."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            quantized = torch.ops.quantized.linear_unpack(self._packed)[0]
        scales = quantized.q_per_channel_scales().to(torch.float32)
        return QuantizedWeight(quantized.int_repr(), scales[:, None], 8)

    def remade(self, weight: QuantizedWeight) -> "FbgemmProduct":
        """Another weight in the same form."""
        return FbgemmProduct(weight, self.limit)


class OnednnProduct:
    """CPUs of any kind."""

    def __init__(self, weight: QuantizedWeight, limit: int) -> None:
        self.limit = limit
        self._weight = weight
        self._packed = torch.ops.onednn.qlinear_prepack(weight.values, None)
        self._scales = weight.scales.reshape(-1).contiguous()
        self._zeros = torch.zeros(len(self._scales), dtype=torch.int64)

    def multiply(self, rows: Tensor) -> Tensor:
        """Exact in the integers."""
        zero = self.limit + 1
        whole = rows.round().add_(zero).to(torch.uint8)
        products: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(whole, 1.0, zero, self._packed, self._scales, self._zeros),
            *(None, 1.0, 0, torch.float32, "none", [], ""),
        )
        return products

    def weight(self) -> QuantizedWeight:
        """The weight as it came."""
        return self._weight

    def remade(self, weight: QuantizedWeight) -> "OnednnProduct":
        """Another weight in the same form."""
        return OnednnProduct(weight, self.limit)


class RoundedProduct(Product, Protocol):
    """A weight [N, K] in int8, and how inputs of any size are rounded and multiplied by it."""

    def weight(self) -> QuantizedWeight:
        """The weight it was made of."""

    def remade(self, weight: QuantizedWeight) -> "RoundedProduct":
        """Another weight in the same form."""


class RoundingProduct:
    """A product of integers, its inputs divided by scales of their rows before and multiplied by them after.

    In few calls: decoding waits for each of them.
    """

    bias_dtype = torch.float32

    def __init__(self, product: Int8Product) -> None:
        self.product = product
        self._limit = float(product.limit)

    def multiply(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """See Product."""
        rows = inputs if inputs.dtype == torch.float32 else inputs.to(torch.float32)
        if rows.numel() == rows.shape[-1]:
            # One row: the same numbers by numpy, whose calls cost a third, between products that empty the caches.
            # Quotients in double, rounded to float32 where they are used, are those of float32.
            numbers = rows.numpy()
            largest = max(float(np.abs(numbers).max()), _SMALLEST)
            outputs = self.product.multiply(torch.from_numpy(numbers * (self._limit / largest)))
            scaled = outputs.numpy()
            scaled *= largest / self._limit
        else:
            maxima = rows.abs().amax(dim=-1, keepdim=True).clamp_(min=_SMALLEST)  # [..., 1]
            limits = torch.full_like(maxima, self._limit)
            outputs = self.product.multiply(rows * torch.div(limits, maxima)).mul_(maxima.div_(limits))
        if bias is not None:
            outputs += bias
        return outputs if rows is inputs else outputs.to(inputs.dtype)

    def weight(self) -> QuantizedWeight:
        """See RoundedProduct."""
        return self.product.weight()

    def remade(self, weight: QuantizedWeight) -> "RoundingProduct":
        """See RoundedProduct."""
        return RoundingProduct(self.product.remade(weight))


class Int8Linear(JoinableLinear):
    """One layer, alone or joined with others."""

    def __init__(self, product: Int8Product, bias: Tensor | None) -> None:
        weight = product.weight()
        super().__init__(RoundingProduct(product), weight.values.shape[1], weight.values.shape[0], bias)
        self.num_bytes += weight.num_bytes

    @property
    def product(self) -> RoundedProduct:
        """Of this layer, and those joined with it."""
        return cast(RoundedProduct, self.join.product)

    def weight(self) -> QuantizedWeight:
        """This layer's own."""
        whole, rows = self.product.weight(), self.rows
        return QuantizedWeight(whole.values[rows], whole.scales[rows], whole.bits)


def join_int8(linears: Sequence[Int8Linear]) -> None:
    """Have layers that read one tensor share one product. Their numbers stay what they are."""
    weights = [linear.weight() for linear in linears]
    values, scales = torch.cat([one.values for one in weights]), torch.cat([one.scales for one in weights])
    share_product(linears[0].product.remade(QuantizedWeight(values, scales, 8)), linears)


def make_product(weight: QuantizedWeight) -> Int8Product:
    """The weight in the form of the fastest library for this CPU."""
    kind = FbgemmProduct if "fbgemm" in torch.backends.quantized.supported_engines else OnednnProduct
    return kind(weight, exact_limit(kind))


@cache
def exact_limit(kind: Callable[[QuantizedWeight, int], Int8Product]) -> int:
    """127 where 8-bit inputs times 8-bit weights are exact on this CPU, else 63: the largest products, added up."""
    weight = QuantizedWeight(torch.full((16, 64), 127, dtype=torch.int8), torch.ones(16, 1), 8)
    products = kind(weight, 127).multiply(torch.full((1, 64), 127.0))
    return 127 if bool((products == 64 * 127 * 127).all()) else 63


def _packed_for_fbgemm(weight: QuantizedWeight) -> Any:
    zeros = torch.zeros(len(weight.values), dtype=torch.int64)
    with warnings.catch_warnings():  # torch deprecates its quantized dtypes, but the operators take nothing else yet
        warnings.simplefilter("ignore", UserWarning)
        scales = weight.scales.reshape(-1).to(torch.float64)
        quantized = torch._make_per_channel_quantized_tensor(weight.values, scales, zeros, 0)
        return torch.ops.quantized.linear_prepack(quantized, None)
