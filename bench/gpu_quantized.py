"""The kernels of quantized weights: how far from the product of the same weights made whole, how fast beside bfloat16.

Layers stand in turn, so that weights come from memory as those of a model do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import torch
from torch import Tensor, nn

from bench.gpu_device import Bench, measure_us
from bench.gpu_part import Row, Rows, row_or_failure
from serve_app.models.packed_linear import PackedLinear
from serve_app.models.quantization import form_of, kind_of, make_linear
from serve_app.models.quantized_kernels import decide_kernel
from serve_app.models.quantized_weight import QuantizedWeight, quantize_weight
from serve_app.types.shards import WeightScheme

HEADER = f"{'scheme':>13} {'rows':>5} {'error':>8} {'bound':>6} {'us':>9} {'bfloat16':>9} {'times':>6}  kernel"
_ROWS = (0, 1, 16, 17, 64, 2048)
_CACHED_BYTES = 128 << 20  # more than a GPU's second-level cache holds


@dataclass(frozen=True, slots=True)
class _Kind:
    scheme: WeightScheme
    max_error: float


# Root mean squares of rounding: bfloat16 0.2 % in and out; inputs to int8 1 % of a normal row, to float8 2.6 %.
_KINDS = {
    "int8": _Kind(WeightScheme(8), 0.01),
    "W8A8": _Kind(WeightScheme(8, has_quantized_inputs=True), 0.025),
    "float8": _Kind(WeightScheme(8, is_float=True), 0.01),
    "float8 inputs": _Kind(WeightScheme(8, is_float=True, has_quantized_inputs=True), 0.05),
    "int4": _Kind(WeightScheme(4, group_size=32), 0.01),
    "int4, 128": _Kind(WeightScheme(4, group_size=128), 0.01),
}


@dataclass(frozen=True, slots=True)
class QuantizedRow:
    """One scheme at one number of rows; None: there is nothing to measure."""

    scheme: str
    kernel: str
    num_rows: int
    error: float | None  # root mean square, of that of the exact product
    max_error: float
    call_us: float | None
    bfloat16_us: float | None

    @property
    def problem(self) -> str | None:
        """An error that rounding does not explain, or NaN."""
        if self.error is not None and not self.error <= self.max_error:
            return f"{self.scheme} ({self.kernel}) at {self.num_rows} rows is {self.error:.3f} off"
        return None

    def __str__(self) -> str:
        begin = f"{self.scheme:>13} {self.num_rows:>5}"
        if self.error is None or self.call_us is None or self.bfloat16_us is None:
            return f"{begin} {'-':>8} {'-':>6} {'-':>9} {'-':>9} {'-':>6}  {self.kernel}"
        speed = f"{self.call_us:9.1f} {self.bfloat16_us:9.1f} {self.bfloat16_us / self.call_us:6.2f}"
        return f"{begin} {self.error:8.4f} {self.max_error:6.3f} {speed}  {self.kernel}"


def check_quantized(bench: Bench) -> Rows:
    """A row for each scheme and number of rows."""
    num_outputs, num_inputs = (128, 256) if bench.is_tiny else (14_336, 4096)  # of an 8B llama's MLP
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(num_outputs, num_inputs, generator=generator) * num_inputs**-0.5
    inputs = torch.randn(max(_ROWS), num_inputs, generator=generator).to(torch.bfloat16).to(bench.device)
    plain = _plain_linears(matrix, bench)
    plain_us = {count: _measure_us(plain, inputs[:count], bench) for count in _ROWS if count}
    for name, kind in _KINDS.items():
        weight = quantize_weight(matrix, kind.scheme)
        linears: list[PackedLinear] = []
        for count in _ROWS:
            measure = partial(_measure, name, weight, linears, inputs[:count], plain_us.get(count), bench)
            yield row_or_failure(f"{name} at {count} rows", measure, bench.is_usable)


@torch.inference_mode()
def _measure(
    name: str,
    weight: QuantizedWeight,
    linears: list[PackedLinear],
    inputs: Tensor,
    plain_us: float | None,
    bench: Bench,
) -> Row:
    """inputs [M, K]; the first call for a weight makes the layers."""
    kind = _KINDS[name]
    if not linears:
        linears.append(make_linear(weight.to(bench.device), None, kind.scheme))
        copies = _num_layers(linears[0].num_bytes, bench) - 1
        linears.extend(make_linear(weight.to(bench.device), None, kind.scheme) for _ in range(copies))
    outputs: Tensor = linears[0](inputs)
    assert outputs.shape == (len(inputs), len(weight.values)), f"it gives {list(outputs.shape)}"
    kernel = decide_kernel(kind.scheme, form_of(weight), kind_of(bench.device)).name
    if plain_us is None:
        return QuantizedRow(name, kernel, len(inputs), None, kind.max_error, None, None)
    exact = inputs.float() @ weight.to(bench.device).dequantized().t()
    error = relative_error(outputs, exact)
    return QuantizedRow(name, kernel, len(inputs), error, kind.max_error, _measure_us(linears, inputs, bench), plain_us)


def relative_error(outputs: Tensor, exact: Tensor) -> float:
    """Root mean square of the differences, of that of the exact ones. Any shape."""
    return float((outputs.float() - exact).norm() / exact.norm())


def _measure_us(linears: Sequence[nn.Module], inputs: Tensor, bench: Bench) -> float:
    turn = cycle(linears)
    return measure_us(lambda: next(turn)(inputs), bench.device)


def _plain_linears(matrix: Tensor, bench: Bench) -> list[nn.Module]:
    weight = matrix.to(torch.bfloat16)
    linears: list[nn.Module] = []
    for _ in range(_num_layers(weight.nbytes, bench)):
        linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight.to(bench.device, copy=True), requires_grad=False)
        linears.append(linear)
    return linears


def _num_layers(num_bytes: int, bench: Bench) -> int:
    return 1 if bench.is_tiny else -(-_CACHED_BYTES // num_bytes)
