"""The arithmetic of the kernels for CUDA, on CPU, where all of torch's operators but tinygemm's exist as well."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from serve_app.models import cuda_linear
from serve_app.models.cuda_linear import (
    CudaLinear,
    CudaProduct,
    Float8RowProduct,
    Int4TileProduct,
    Int8CastProduct,
    Int8RowProduct,
    dequantized_tiles,
    int4_factors,
    row_maxima,
    unpack_tiles,
)
from serve_app.models.quantization import join_linears, make_linear
from serve_app.models.quantized_weight import QuantizedWeight, quantize_weight
from serve_app.types.shards import MIN_FLOAT8_CAPABILITY, WeightScheme

INT8 = WeightScheme(8, has_quantized_inputs=True)
INT4 = WeightScheme(4, group_size=32)
FP8 = WeightScheme(8, is_float=True, has_quantized_inputs=True)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

Maker = Callable[[QuantizedWeight], CudaProduct]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def int8(weight: QuantizedWeight) -> CudaProduct:
    return Int8RowProduct(weight.values, weight.scales)


def int8_weight(weight: QuantizedWeight) -> CudaProduct:
    return Int8CastProduct(weight.values, weight.scales)


def float8(weight: QuantizedWeight) -> CudaProduct:
    return Float8RowProduct(weight.values, weight.scales, weight.input_scale)


def static_float8(weight: QuantizedWeight) -> CudaProduct:
    return Float8RowProduct(weight.values, weight.scales, torch.tensor(0.1))


def int4(weight: QuantizedWeight) -> CudaProduct:
    tiles = packed_by_hand((weight.values + 8).to(torch.uint8))
    return Int4TileProduct(tiles, int4_factors(weight), weight.group_size, weight.input_order)


def packed_by_hand(numbers: Tensor) -> Tensor:
    """What matrix_to_m16n8k16_Bint4_layout of torch's int4mm.cu makes of numbers [N, K] uint8, word by word."""
    num_outputs, num_inputs = numbers.shape
    tiles = torch.zeros(num_outputs // 8, num_inputs // 128, 32, 4, dtype=torch.int64)
    pairs = (numbers[:, ::2] << 4 | numbers[:, 1::2]).tolist()
    for row_tile in range(tiles.shape[0]):
        for outer in range(tiles.shape[1]):
            for lane in range(32):
                row = pairs[row_tile * 8 + lane // 4]
                for inner in range(0, 8, 2):
                    first = (outer * 8 + inner) * 8 + lane % 4
                    v = [row[place] for place in (first, first + 4, first + 8, first + 12)]
                    low = [one & 15 for one in v]
                    high = [one >> 4 for one in v]
                    word = sum(one << 4 * place for place, one in enumerate([*high, *low]))
                    tiles[row_tile, outer, lane, inner // 2] = word
    return torch.where(tiles >= 2**31, tiles - 2**32, tiles).to(torch.int32)


KINDS: list[tuple[Maker, WeightScheme, float]] = [
    (int8, INT8, 1e-2),
    (int8_weight, INT8, 1e-2),
    (float8, FP8, 4e-2),
    (static_float8, FP8, 4e-2),
    (int4, INT4, 1e-2),
]


def made(make: Maker, scheme: WeightScheme, num_outputs: int = 64) -> tuple[CudaLinear, QuantizedWeight, Tensor]:
    weight = quantize_weight(torch.randn(num_outputs, 128), scheme)
    bias = torch.randn(num_outputs)
    return CudaLinear(make(weight), 128, weight.num_bytes, bias), weight, bias


@pytest.mark.parametrize(("make", "scheme", "tolerance"), KINDS)
@pytest.mark.parametrize("num_rows", [1, 17, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_gives_what_its_dequantized_weight_gives(
    make: Maker, scheme: WeightScheme, tolerance: float, num_rows: int, dtype: torch.dtype
) -> None:
    if make is int4 and num_rows < 33:  # tinygemm is for CUDA
        num_rows = 33
    module, weight, bias = made(make, scheme)
    inputs = (torch.randn(num_rows, 2, 128) * torch.rand(num_rows, 1, 1) * 10).to(dtype)
    outputs = module(inputs)
    expected = linear(inputs.float(), weight.dequantized(), bias)
    assert (outputs.dtype, outputs.shape) == (dtype, (num_rows, 2, 64))
    assert (outputs - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize(("make", "scheme", "_tolerance"), KINDS)
def test_no_rows_launch_nothing(make: Maker, scheme: WeightScheme, _tolerance: float) -> None:
    module, _weight, _bias = made(make, scheme)
    outputs = module(torch.zeros(1, 0, 128, dtype=torch.bfloat16))
    assert (outputs.shape, outputs.dtype) == ((1, 0, 64), torch.bfloat16)


def test_rows_that_lie_in_columns_are_taken() -> None:
    for make, scheme, _tolerance in KINDS:
        module, _weight, _bias = made(make, scheme)
        inputs = torch.randn(128, 70).t()
        assert torch.equal(module(inputs), module(inputs.contiguous()))


@pytest.mark.parametrize(("make", "scheme", "_tolerance"), KINDS)
def test_joined_layers_give_what_each_gives_alone(make: Maker, scheme: WeightScheme, _tolerance: float) -> None:
    linears = [made(make, scheme, size)[0] for size in (64, 16, 32)]
    inputs = torch.randn(70, 128)
    expected = [one(inputs) for one in linears]
    for one in linears:
        one.join._has_bias = False
    join_linears([*linears])
    assert linears[0].join is linears[2].join
    for one, before in zip(linears, expected, strict=True):
        assert torch.allclose(one(inputs), before, rtol=1e-2, atol=1e-2)


def test_layers_that_differ_in_form_stay_alone() -> None:
    weights = [quantize_weight(torch.randn(16, 128), FP8) for _ in range(2)]
    static = [
        CudaLinear(Float8RowProduct(one.values, one.scales, torch.tensor(scale)), 128, 0, None)
        for one, scale in zip(weights, (0.1, 0.2), strict=True)
    ]
    mixed = [made(int8, INT8)[0], made(int8_weight, INT8)[0]]
    ordered = quantize_weight(torch.randn(16, 128), INT4)
    orders = [
        CudaLinear(
            Int4TileProduct(packed_by_hand((ordered.values + 8).byte()), int4_factors(ordered), 32, order), 128, 0, None
        )
        for order in (torch.randperm(128), None)
    ]
    for linears in (static, mixed, orders):
        join_linears([*linears])
        assert all(one.join.is_lone for one in linears)


def test_integers_are_exact() -> None:
    values = torch.randint(-127, 128, (32, 64), dtype=torch.int8)
    inputs = torch.randint(-127, 128, (5, 64)).float()
    inputs[:, 0] = 127
    outputs = Int8RowProduct(values, torch.full((32, 1), 127.0)).multiply(inputs / 127, None)
    assert torch.allclose(outputs, inputs @ values.float().t(), rtol=1e-6)


@pytest.mark.parametrize(("make", "scheme", "_tolerance"), KINDS[:3])
def test_a_row_of_zeros_gives_the_bias_and_one_that_is_not_finite_gives_no_number(
    make: Maker, scheme: WeightScheme, _tolerance: float
) -> None:
    module, _weight, bias = made(make, scheme)
    inputs = torch.randn(4, 128)
    inputs[0] = 0
    inputs[1, 3], inputs[2, 5] = float("nan"), float("inf")
    outputs = module(inputs)
    assert torch.allclose(outputs[0], bias, atol=1e-2)
    assert not outputs[1:3].isfinite().any()
    assert outputs[3].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_magnitude_of_a_row_is_one_exact_reduction(dtype: torch.dtype) -> None:
    inputs = torch.randn(9, 128).to(dtype)
    assert torch.equal(row_maxima(inputs), inputs.float().abs().amax(dim=-1, keepdim=True))


def test_tiles_are_unpacked_as_torch_packs_them() -> None:
    numbers = torch.randint(0, 16, (24, 384), dtype=torch.uint8)
    assert torch.equal(unpack_tiles(packed_by_hand(numbers)).to(torch.uint8), numbers)


def test_tiles_with_zero_points_and_an_order_stand_for_their_weight() -> None:
    values = torch.randint(-8, 8, (16, 256), dtype=torch.int8)
    zeros = torch.randint(-8, 8, (16, 8), dtype=torch.int8)
    weight = QuantizedWeight(values, torch.rand(16, 8), 4, zeros, torch.randperm(256))
    factors = int4_factors(weight)
    plain = QuantizedWeight(values, weight.scales, 4, zeros).dequantized()
    found = dequantized_tiles(packed_by_hand((values + 8).byte()), factors).float()
    assert (found - plain).norm() / plain.norm() < 1e-2
    product = Int4TileProduct(packed_by_hand((values + 8).byte()), factors, 32, weight.input_order)
    inputs = torch.randn(65, 256)
    expected = inputs @ weight.dequantized().t()
    assert (product.multiply(inputs, None) - expected).norm() / expected.norm() < 1e-2


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operators that would launch a kernel each on a GPU."""

    free = ("view", "empty", "new_empty", "slice", "t.", "_unsafe_view", "detach")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.__name__
        if not name.startswith(self.free):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("make", "scheme", "count"), [(int8, INT8, 8), (int8_weight, INT8, 3), (float8, FP8, 5)])
def test_a_product_of_bfloat16_is_few_launches(make: Maker, scheme: WeightScheme, count: int) -> None:
    weight = quantize_weight(torch.randn(64, 128), scheme)
    product = make(weight)
    inputs = torch.ones(2, 128, dtype=torch.bfloat16)
    with torch.no_grad(), Launches() as launches:
        product.multiply(inputs, None)
    assert len(launches.names) == count, launches.names


@pytest.mark.parametrize("scheme", [INT8, WeightScheme(8), INT4, FP8], ids=["int8", "int8 weights", "int4", "fp8"])
@pytest.mark.parametrize("num_rows", [1, 32, 33])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_on_a_gpu_get_these_kernels_and_join(
    scheme: WeightScheme, num_rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without numbers, of a GPU that is not there: dtypes and shapes are checked as for CUDA."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(cuda_linear, "can_unpack_tiles", lambda _device: True)
    weights = [quantize_weight(torch.randn(size, 128), scheme) for size in (64, 32)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        device = torch.device("cuda:0")
        linears: list[CudaLinear] = []
        for weight in weights:
            bias = torch.empty(len(weight.values), dtype=dtype, device=device)
            made_linear = make_linear(weight.to(device), bias, scheme)
            assert isinstance(made_linear, CudaLinear)
            linears.append(made_linear)
        inputs = torch.empty(2, num_rows, 128, dtype=dtype, device=device)
        alone = [one(inputs) for one in linears]
        for one in linears:
            one.join._has_bias = False
        join_linears([*linears])
        assert linears[0].join is linears[1].join
        for outputs in (alone, [one(inputs) for one in linears]):
            assert [(one.shape, one.dtype) for one in outputs] == [((2, num_rows, size), dtype) for size in (64, 32)]
            assert {one.device.type for one in outputs} == {"cuda"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(
    ("scheme", "tolerance"), [(INT8, 1e-2), (WeightScheme(8), 1e-2), (INT4, 1e-2), (FP8, 4e-2)], ids=str
)
@pytest.mark.parametrize("num_rows", [0, 1, 16, 17, 64, 65, 2048])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_on_a_gpu_gives_what_its_dequantized_weight_gives(
    scheme: WeightScheme, tolerance: float, num_rows: int, dtype: torch.dtype
) -> None:
    device = torch.device("cuda:0")
    if scheme.is_float and torch.cuda.get_device_capability(device) < MIN_FLOAT8_CAPABILITY:
        pytest.skip("the GPU has no float8 products")
    weight, bias = quantize_weight(torch.randn(512, 1024), scheme), torch.randn(512)
    module = make_linear(weight.to(device), bias.to(device), scheme)
    assert isinstance(module, CudaLinear)
    assert cuda_linear.can_unpack_tiles(device)
    inputs = torch.randn(num_rows, 1024).to(dtype)
    outputs = module(inputs.to(device)).cpu()
    expected = linear(inputs.float(), weight.dequantized(), bias)
    assert (outputs.dtype, outputs.shape) == (dtype, (num_rows, 512))
    assert (outputs - expected).norm() <= tolerance * expected.norm()
