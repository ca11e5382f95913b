"""Every attention backend that the device has against the reference in float32, over shapes of heads and scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import torch

from bench.gpu_device import Bench
from bench.gpu_layer import Layer, Scores, make_layer
from bench.gpu_part import Note, Rows, row_or_failure
from serve_app.architectures.head_sizes import HeadSizes
from serve_app.engine.attention.backend import DecodeBackend
from serve_app.engine.attention.choice import DecodeSizes, choose_attention
from serve_app.errors import ConfigError
from serve_app.models.fused_attention import attention_kernels
from serve_app.models.torch_dtypes import DTYPE_NAMES
from serve_app.planning.attention_problem import VARLEN_PAGE_TOKENS

HEADER = f"{'backend':>9} {'dtype':>8} {'largest error':>13} {'bound':>8} {'changed in a batch':>18}  heads"
BACKENDS = ("padded", "triton", "varlen")
# Outputs are of order one to four, and so are inputs rounded to their dtype; TF32 would be 1e-3 away.
ERROR_BOUNDS = {torch.float32: 1e-4, torch.float16: 8 * 2.0**-10, torch.bfloat16: 8 * 2.0**-7}
_BITS_DTYPE = torch.bfloat16  # in which bits are compared: Triton compiles anew for sequences alone, for seconds each
_BLOCK_SIZE = 16
_FULL_LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1000, 4097, 8192)
_TINY_LENGTHS = (1, 17, 64, 65, 300)
_LONGEST_ALONE = 3  # sequences that are run alone, beside the shortest


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of layer."""

    label: str
    heads: HeadSizes
    scores: Scores = field(default_factory=Scores)
    has_sinks: bool = False

    def on(self, device: torch.device) -> Scores:
        """What it does to its scores, sinks and all."""
        sinks = torch.linspace(-1, 2, self.heads.num_heads, device=device) if self.has_sinks else None
        return replace(self.scores, sinks=sinks)


CASES = (
    Case("32 heads share 8, 128 wide", HeadSizes(32, 8, 128, 128)),
    Case("32 heads share 8, 128 wide, window 300", HeadSizes(32, 8, 128, 128), Scores(window=300)),
    Case("8 heads share 1, 64 wide", HeadSizes(8, 1, 64, 64)),
    Case("64 heads share 8, 64 wide, window 128, sinks", HeadSizes(64, 8, 64, 64), Scores(window=128), has_sinks=True),
    Case("16 heads, keys 192 wide, values 128", HeadSizes(16, 16, 192, 128)),
    Case("8 heads share 4, 256 wide, softcap 50", HeadSizes(8, 4, 256, 256), Scores(softcap=50.0)),
    Case("6 heads, keys 24 wide, values 16, window 5", HeadSizes(6, 6, 24, 16), Scores(window=5)),
    Case(
        "8 heads share 2, 64 wide, window 1000, softcap 1.5, sinks",
        HeadSizes(8, 2, 64, 64),
        Scores(window=1000, softcap=1.5),
        has_sinks=True,
    ),
)


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """How far a backend is from the reference."""

    backend: str
    dtype: str
    label: str
    largest_error: float
    bound: float
    num_changed: int | None  # sequences whose bits are others alone; None: not promised, or not tried

    @property
    def problem(self) -> str | None:
        """An error beyond the bound, NaN among them, or a bit that batch-mates change."""
        if not self.largest_error <= self.bound:
            return f"{self.backend} in {self.dtype} is {self.largest_error:.1e} off ({self.label})"
        if self.num_changed:
            return f"{self.backend} in {self.dtype}: batch-mates change {self.num_changed} sequences ({self.label})"
        return None

    def __str__(self) -> str:
        changed = "-" if self.num_changed is None else str(self.num_changed)
        numbers = f"{self.largest_error:13.1e} {self.bound:8.0e} {changed:>18}"
        return f"{self.backend:>9} {self.dtype:>8} {numbers}  {self.label}"


def check_attention(bench: Bench) -> Rows:
    """A row for each backend, kind of layer and dtype."""
    lengths = _TINY_LENGTHS if bench.is_tiny else _FULL_LENGTHS
    reasons: set[str] = set()
    for case, dtype, name in product(CASES, ERROR_BOUNDS, ("reference", *BACKENDS)):
        sizes = DecodeSizes(block_size_of(name), max(lengths), len(lengths))
        try:
            backend = choose_attention(name, (case.heads,), sizes, dtype, bench.device).backend
        except ConfigError as error:
            if str(error) not in reasons:
                reasons.add(str(error))
                yield Note(f"{name:>9} {DTYPE_NAMES[dtype]:>8} not tried: {error}")
            continue
        measure = partial(measure_errors, case, name, backend, dtype, lengths, bench.device)
        yield row_or_failure(f"{name}, {case.label}, {DTYPE_NAMES[dtype]}", measure, bench.is_usable)


def measure_errors(
    case: Case,
    name: str,
    backend: DecodeBackend | None,
    dtype: torch.dtype,
    lengths: Sequence[int],
    device: torch.device,
) -> ErrorRow:
    """One row; None: the reference's loop."""
    layer, scores = make_layer(case.heads, lengths, block_size_of(name), dtype, device), case.on(device)
    layer.forget_unseen()
    num_changed = None
    with attention_kernels(device), torch.inference_mode():
        error = largest_error(layer, scores, backend)
        if backend is not None and dtype == _BITS_DTYPE and keeps_bits(name, scores):
            num_changed = num_changed_alone(layer, scores, backend)
    return ErrorRow(name, DTYPE_NAMES[dtype], case.label, error, ERROR_BOUNDS[dtype], num_changed)


def block_size_of(name: str) -> int:
    """Tokens of a block in which a backend is tried."""
    return VARLEN_PAGE_TOKENS if name == "varlen" else _BLOCK_SIZE


def keeps_bits(name: str, scores: Scores) -> bool:
    """Whether a backend promises a sequence's bits, whatever else is in the batch."""
    if name == "varlen":  # other layers are padded
        return scores.softcap is None and scores.sinks is None
    return name == "triton"


def largest_error(layer: Layer, scores: Scores, backend: DecodeBackend | None) -> float:
    """From the reference in float32 on the CPU; None: the reference's on the layer's own device, in its dtype."""
    if backend is None:
        found = layer.attend_each(scores, layer.query.dtype, layer.query.device)
    else:
        found = layer.decode(backend, scores)
    expected = layer.attend_each(scores, torch.float32, torch.device("cpu"))
    return float((found.float().cpu() - expected).abs().max())


def num_changed_alone(layer: Layer, scores: Scores, backend: DecodeBackend) -> int:
    """Sequences, of the shortest and the longest ones, that get other bits in the batch than alone."""
    together = layer.decode(backend, scores)
    indices = {0, *range(max(0, len(together) - _LONGEST_ALONE), len(together))}
    return sum(not torch.equal(together[index], layer.decode_alone(backend, scores, index)) for index in indices)
