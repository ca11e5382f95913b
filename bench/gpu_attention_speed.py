"""What a call of each attention backend takes, beside the time in which its keys and values can be read."""

from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from bench.gpu_attention import BACKENDS, block_size_of
from bench.gpu_device import Bench, measure_us
from bench.gpu_layer import Layer, Scores, make_layer
from bench.gpu_part import Note, Rows, row_or_failure
from serve_app.architectures.head_sizes import HeadSizes
from serve_app.engine.attention.backend import DecodeBackend
from serve_app.engine.attention.choice import DecodeSizes, choose_attention
from serve_app.engine.decode_graphs import capture_on
from serve_app.errors import ConfigError
from serve_app.models.fused_attention import attention_kernels

HEADER = f"{'backend':>9} {'batch':>5} {'context':>7} {'us a call':>10} {'in a graph':>10} {'bound':>8} {'of bound':>8}"
_HEADS = HeadSizes(32, 8, 128, 128)  # of an 8B llama
_BATCH_SIZES = (1, 8, 64)
_FULL_CONTEXTS, _TINY_CONTEXTS = (256, 1024, 8192), (256,)
_CACHED_BYTES = 128 << 20  # more than a GPU's second-level cache holds, as the layers of a model are
_MAX_LAYERS = 64


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """Microseconds of one layer, bfloat16."""

    backend: str
    batch_size: int
    context: int
    eager_us: float  # launched call by call
    graph_us: float | None  # replayed; None: not on CPU
    bound_us: float
    problem: None = None

    def __str__(self) -> str:
        graph = "-" if self.graph_us is None else f"{self.graph_us:.1f}"
        share = self.bound_us / (self.graph_us or self.eager_us)
        sizes = f"{self.backend:>9} {self.batch_size:>5} {self.context:>7}"
        return f"{sizes} {self.eager_us:10.1f} {graph:>10} {self.bound_us:8.1f} {share:8.1%}"


def measure_attention(bench: Bench) -> Rows:
    """A row for each backend, batch size and context."""
    contexts = _TINY_CONTEXTS if bench.is_tiny else _FULL_CONTEXTS
    for name in BACKENDS:
        sizes = DecodeSizes(block_size_of(name), max(contexts), max(_BATCH_SIZES))
        try:
            backend = choose_attention(name, (_HEADS,), sizes, torch.bfloat16, bench.device).backend
        except ConfigError as error:
            yield Note(f"{name:>9} not measured: {error}")
            continue
        assert backend is not None
        for batch_size, context in product(_BATCH_SIZES, contexts):
            measure = partial(_measure, bench, name, backend, batch_size, context)
            yield row_or_failure(f"{name}, batch {batch_size}, context {context}", measure, bench.is_usable)


def num_layers_of(layer_bytes: int) -> int:
    """Layers to measure in turn, so that none is still cached when its turn comes again."""
    return min(-(-_CACHED_BYTES // layer_bytes), _MAX_LAYERS)


def _measure(bench: Bench, name: str, backend: DecodeBackend, batch_size: int, context: int) -> SpeedRow:
    layer_bytes = batch_size * context * _HEADS.width * torch.bfloat16.itemsize
    num_layers = 1 if bench.is_tiny else num_layers_of(layer_bytes)
    lengths, block_size = [context] * batch_size, block_size_of(name)
    layers = [make_layer(_HEADS, lengths, block_size, torch.bfloat16, bench.device) for _ in range(num_layers)]
    call = partial(_decode_all, backend, layers)
    with attention_kernels(bench.device), torch.inference_mode():
        eager_us = measure_us(call, bench.device) / num_layers
        capture = capture_on(bench.device)
        graph_us = None if capture is None else measure_us(capture(call), bench.device) / num_layers
    bound_us = layer_bytes / bench.copy_bytes_per_s * 1e6
    return SpeedRow(name, batch_size, context, eager_us, graph_us, bound_us)


def _decode_all(backend: DecodeBackend, layers: list[Layer]) -> Tensor:
    """What the last one gives."""
    for layer in layers:
        output = layer.decode(backend, Scores())
    return output
