"""Which kernel a quantized weight gets on which device, and what the log says of it."""

import logging

import pytest

from serve_app.models.quantized_kernels import (
    DeviceKind,
    KernelDecision,
    KernelTally,
    WeightForm,
    decide_kernel,
)
from serve_app.types.shards import WeightScheme

INT8 = WeightScheme(8, has_quantized_inputs=True)
INT8_WEIGHT = WeightScheme(8)
INT4 = WeightScheme(4, group_size=32)
FP8 = WeightScheme(8, is_float=True, has_quantized_inputs=True)
FP8_BLOCKS = WeightScheme(8, is_float=True, group_size=128, has_quantized_inputs=True, block_rows=128)
FP8_WEIGHT = WeightScheme(8, is_float=True)
CPU = DeviceKind("cpu")
H100, L4, A100, T4 = (DeviceKind("cuda", one) for one in ((9, 0), (8, 9), (8, 0), (7, 5)))
UNKNOWN = DeviceKind("cuda")


def rows(num_outputs: int = 4096, num_inputs: int = 4096) -> WeightForm:
    return WeightForm(num_outputs, num_inputs, num_inputs)


def groups(size: int, num_outputs: int = 4096, num_inputs: int = 4096, *, is_plain: bool = True) -> WeightForm:
    return WeightForm(num_outputs, num_inputs, size, is_plain)


@pytest.mark.parametrize(
    ("scheme", "form", "device", "kernel"),
    [
        (INT8, rows(), CPU, "rounded_int8"),
        (INT8, rows(63, 95), CPU, "rounded_int8"),
        (INT8, rows(), T4, "rounded_int8"),
        (INT8_WEIGHT, rows(), CPU, "packed_int8"),
        (INT8_WEIGHT, rows(63, 95), A100, "cast_int8"),
        (INT4, groups(32), CPU, "packed_int4"),
        (INT4, groups(128, is_plain=False), A100, "packed_int4"),
        (INT4, groups(32), UNKNOWN, "packed_int4"),
        (WeightScheme(3, group_size=64), groups(64), H100, "packed_int4"),
        (FP8, rows(), L4, "scaled_float8"),
        (FP8, rows(), H100, "scaled_float8"),
        (FP8, rows(), UNKNOWN, "scaled_float8"),
    ],
)
def test_the_fast_kernel_is_taken(scheme: WeightScheme, form: WeightForm, device: DeviceKind, kernel: str) -> None:
    assert decide_kernel(scheme, form, device) == KernelDecision(kernel)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scheme", "form", "device", "reason"),
    [
        (INT8, rows(4096, 4100), A100, "rounded_int8: inputs must be a multiple of 8"),
        (INT8, rows(4098), A100, "rounded_int8: outputs must be a multiple of 8"),
        (INT8_WEIGHT, rows(64, 40), CPU, "packed_int8: inputs must be a multiple of 16"),
        (INT8_WEIGHT, groups(128), A100, "cast_int8: inputs are in groups with scales of their own"),
        (INT8, WeightForm(64, 64, 64, is_plain=False), CPU, "rounded_int8: it has zero points or an order"),
        (INT4, groups(48), CPU, "packed_int4: groups must have one of 32, 64, 128, 256 inputs"),
        (INT4, groups(32, 4096, 4128), A100, "packed_int4: inputs must be a multiple of 128"),
        (INT4, groups(32), T4, "packed_int4: compute capability 8.0 is needed"),
        (FP8, rows(), CPU, "scaled_float8: CPUs have no kernel for float8"),
        (FP8, rows(), A100, "scaled_float8: compute capability 8.9 is needed"),
        (FP8, rows(4104), H100, "scaled_float8: outputs must be a multiple of 16"),
        (FP8_BLOCKS, groups(128), H100, "scaled_float8: inputs are in groups with scales of their own"),
        (FP8_WEIGHT, rows(), H100, "scaled_float8: inputs are not rounded to float8"),
        (WeightScheme(6), rows(), H100, "no kernel takes 6 bits on cuda"),
    ],
)
def test_where_it_is_not_the_reason_is_told(
    scheme: WeightScheme, form: WeightForm, device: DeviceKind, reason: str
) -> None:
    assert decide_kernel(scheme, form, device) == KernelDecision("dequantized", reason)


def test_the_log_has_one_line_for_each_kernel_and_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tally = KernelTally()
    for index in range(3):
        for form in (rows(), rows(4096, 4100)):
            tally.add(f"layers.{index}.{form.num_inputs}", form, H100, decide_kernel(INT8, form, H100))
    tally.log()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "quantized layers device=cuda 9.0 kernel=rounded_int8 layers=3"),
        (
            "WARNING",
            "quantized layers are dequantized in each call, which is slow device=cuda 9.0 layers=3 "
            "first=layers.0.4100 [4096, 4100] group_size=4100 reason=rounded_int8: inputs must be a multiple of 8",
        ),
    ]
