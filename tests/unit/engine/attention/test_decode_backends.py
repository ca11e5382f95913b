"""Each backend that decodes sequences together gives what attention of one sequence after the other gives."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from serve_app.engine.attention.backend import DecodeBackend, DecodeRows, slots_of
from serve_app.engine.attention.compiled import CompiledBackend
from serve_app.engine.attention.padded import PaddedBackend
from serve_app.engine.attention.reference import attend_one
from tests.compiled import kernels_or_skip

SCALING = 0.3


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a layer's cache."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    block_size: int
    max_model_len: int


def make_padded(geometry: Geometry) -> DecodeBackend:
    return PaddedBackend(geometry.block_size)


def make_triton(geometry: Geometry) -> DecodeBackend:
    from serve_app.engine.attention.triton_backend import TritonBackend

    return TritonBackend(geometry.block_size, geometry.max_model_len)


def make_compiled(geometry: Geometry) -> DecodeBackend:
    return CompiledBackend(geometry.block_size, kernels_or_skip())


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton comes with torch for CUDA, not for CPU")
BACKENDS = [
    pytest.param(make_padded, id="padded"),
    pytest.param(make_compiled, id="compiled"),
    pytest.param(make_triton, id="triton", marks=needs_triton),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tensors are tiny


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's cache, full of sequences whose blocks are scattered."""

    geometry: Geometry
    keys: Tensor
    values: Tensor
    query: Tensor
    decoded: DecodeRows

    def alone(self, index: int) -> tuple[Tensor, DecodeRows]:
        """The query and the keys of one sequence."""
        one = slice(index, index + 1)
        length = int(self.decoded.lengths[index])
        return self.query[one], DecodeRows(self.decoded.tables[one], self.decoded.lengths[one], length)

    def expected(self, window: int | None, softcap: float | None, sinks: Tensor | None) -> Tensor:
        outputs = []
        for index, length in enumerate(self.decoded.lengths.tolist()):
            query, decoded = self.alone(index)
            slots = slots_of(decoded, torch.zeros(1, dtype=torch.int64), length, self.geometry.block_size)[0]
            keys, values = self.keys[slots].float(), self.values[slots].float()
            outputs.append(attend_one(query.float().transpose(0, 1), keys, values, SCALING, window, softcap, sinks)[0])
        return torch.stack(outputs)


def make_layer(
    lengths: list[int],
    geometry: Geometry,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    generator = torch.Generator().manual_seed(len(lengths))
    size = geometry.block_size
    num_blocks = sum(-(-length // size) for length in lengths) + 3
    order = torch.randperm(num_blocks, generator=generator)
    tables = torch.full((len(lengths), -(-geometry.max_model_len // size)), num_blocks - 1)
    taken = 0
    for row, length in enumerate(lengths):
        count = -(-length // size)
        tables[row, :count] = order[taken : taken + count]
        taken += count
    keys = torch.randn(num_blocks * size, geometry.num_kv_heads, geometry.head_dim, generator=generator)
    values = torch.randn(num_blocks * size, geometry.num_kv_heads, geometry.value_dim, generator=generator)
    query = torch.randn(len(lengths), geometry.num_heads, geometry.head_dim, generator=generator)
    decoded = DecodeRows(tables, torch.tensor(lengths), max(lengths))
    return Layer(geometry, keys.to(dtype), values.to(dtype), query.to(dtype), decoded)


def decode(
    backend: DecodeBackend,
    layer: Layer,
    query: Tensor,
    decoded: DecodeRows,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    return backend.decode(query, layer.keys, layer.values, decoded, SCALING, window, softcap, sinks)


@pytest.mark.parametrize("has_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("softcap", [None, 1.5], ids=["plain", "softcap"])
@pytest.mark.parametrize("window", [None, 1, 5, 300], ids=lambda window: f"window {window}")
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(4, 2, 8, 8, block_size=4, max_model_len=600),
        Geometry(6, 6, 24, 16, block_size=3, max_model_len=600),  # latent attention: values narrower than keys
        Geometry(8, 1, 64, 64, block_size=16, max_model_len=9000),  # parts of a sequence are longer
    ],
    ids=["shared heads", "narrow values", "one key-value head"],
)
@pytest.mark.parametrize("make", BACKENDS)
def test_sequences_decoded_together_are_what_each_is_alone(
    make: Callable[[Geometry], DecodeBackend],
    geometry: Geometry,
    window: int | None,
    softcap: float | None,
    has_sinks: bool,
) -> None:
    layer = make_layer([1, 22, 9, 590, 256, 257], geometry)
    sinks = torch.linspace(-1, 2, geometry.num_heads) if has_sinks else None
    found = decode(make(geometry), layer, layer.query, layer.decoded, window, softcap, sinks)
    torch.testing.assert_close(found, layer.expected(window, softcap, sinks), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        pytest.param(make_padded, torch.float16, id="padded-float16"),
        pytest.param(make_padded, torch.bfloat16, id="padded-bfloat16"),
        pytest.param(make_compiled, torch.bfloat16, id="compiled-bfloat16"),
        pytest.param(make_triton, torch.float16, id="triton-float16", marks=needs_triton),  # it interprets no bfloat16
    ],
)
def test_half_precision_keeps_half_precision_s_error(
    make: Callable[[Geometry], DecodeBackend], dtype: torch.dtype
) -> None:
    geometry = Geometry(8, 2, 32, 32, block_size=16, max_model_len=1024)
    layer = make_layer([1000, 3, 300], geometry, dtype)
    found = decode(make(geometry), layer, layer.query, layer.decoded)
    assert found.dtype == dtype
    assert (found.float() - layer.expected(None, None, None)).abs().max() < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(
    "make", [pytest.param(make_compiled, id="compiled"), pytest.param(make_triton, id="triton", marks=needs_triton)]
)  # padded sums as many products as its longest sequence has
def test_batch_mates_change_no_bit(make: Callable[[Geometry], DecodeBackend], window: int | None) -> None:
    geometry = Geometry(4, 2, 16, 16, block_size=4, max_model_len=600)
    layer, backend = make_layer([31, 590, 7, 260], geometry), make(geometry)
    together = decode(backend, layer, layer.query, layer.decoded, window)
    for index in range(4):
        alone = decode(backend, layer, *layer.alone(index), window)
        assert torch.equal(together[index], alone[0])


@pytest.mark.parametrize("make", BACKENDS)
def test_what_a_block_held_before_is_not_seen(make: Callable[[Geometry], DecodeBackend]) -> None:
    geometry = Geometry(4, 2, 8, 8, block_size=4, max_model_len=64)
    layer = make_layer([3, 18], geometry)
    seen = torch.cat(
        [
            slots_of(layer.alone(index)[1], torch.zeros(1, dtype=torch.int64), length, 4)[0]
            for index, length in enumerate((3, 18))
        ]
    )
    is_stale = torch.ones(len(layer.keys), dtype=torch.bool).index_fill_(0, seen, False)
    layer.keys[is_stale] = layer.values[is_stale] = math.nan
    found = decode(make(geometry), layer, layer.query, layer.decoded)
    torch.testing.assert_close(found, layer.expected(None, None, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", BACKENDS)
def test_a_longer_limit_changes_nothing(make: Callable[[Geometry], DecodeBackend]) -> None:
    """A captured step passes the longest that there may be."""
    geometry = Geometry(4, 2, 8, 8, block_size=4, max_model_len=600)
    layer, backend = make_layer([31, 7], geometry), make(geometry)
    whole = DecodeRows(layer.decoded.tables, layer.decoded.lengths, geometry.max_model_len)
    found = decode(backend, layer, layer.query, whole)
    torch.testing.assert_close(found, decode(backend, layer, layer.query, layer.decoded), rtol=1e-6, atol=1e-6)
