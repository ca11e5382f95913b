"""What the parts of the GPU check take for right and for wrong."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.generated import Generated
from bench.gpu_attention import CASES, Case, ErrorRow, keeps_bits, measure_errors
from bench.gpu_attention_speed import SpeedRow, num_layers_of
from bench.gpu_bad_index import Outcome, try_bad_index
from bench.gpu_decode import DecodeRow
from bench.gpu_device import Bench, measure_us
from bench.gpu_faults import index_problem, memory_problem
from bench.gpu_graphs import GraphRow, check_graphs, tokens_per_s
from bench.gpu_layer import Scores, make_layer
from bench.gpu_long_prompt import LongPromptRow, fused_among
from bench.gpu_nccl import GroupRow
from bench.gpu_parity import Parity
from bench.gpu_part import PART_LIMITS_S, Failed, Note, Row, Rows, row_or_failure, told
from bench.gpu_quantized import QuantizedRow, relative_error
from bench.gpu_sampler import SamplerRow, num_different
from bench.gpu_worker import PARTS, Part, run_part
from serve_app.architectures.head_sizes import HeadSizes
from serve_app.engine.attention.backend import DecodeRows
from serve_app.engine.attention.padded import PaddedBackend

CPU = torch.device("cpu")
BENCH = Bench(CPU, is_tiny=True, copy_bytes_per_s=1e10)
LENGTHS = (1, 17, 40)


class WrongBackend(PaddedBackend):
    """Forgets each sequence's last key."""

    def decode(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        decoded: DecodeRows,
        scaling: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        lengths = (decoded.lengths - 1).clamp(min=1)
        shorter = replace(decoded, lengths=lengths)
        return super().decode(query, keys, values, shorter, scaling, window, softcap, sinks)


class BatchBackend(PaddedBackend):
    """Gives a sequence other bits where others are beside it."""

    def decode(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        decoded: DecodeRows,
        scaling: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        output = super().decode(query, keys, values, decoded, scaling, window, softcap, sinks)
        return output + (len(query) - 1)


def test_all_parts_have_a_limit_of_time() -> None:
    assert list(PARTS) == list(PART_LIMITS_S)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_a_right_backend_holds(case: Case) -> None:
    assert measure_errors(case, "padded", PaddedBackend(16), torch.float32, LENGTHS, CPU).problem is None


def test_a_wrong_backend_does_not_hold() -> None:
    row = measure_errors(CASES[0], "padded", WrongBackend(16), torch.bfloat16, LENGTHS, CPU)
    assert row.problem is not None
    assert "off" in row.problem


def test_bits_that_batch_mates_change_are_counted_where_they_must_not() -> None:
    counts = [
        measure_errors(CASES[0], name, backend, torch.bfloat16, LENGTHS, CPU).num_changed
        for name, backend in (("triton", BatchBackend(16)), ("padded", BatchBackend(16)), ("reference", None))
    ]
    assert counts == [3, None, None]
    assert ErrorRow("triton", "bfloat16", "some heads", 0.0, 1.0, 3).problem is not None
    assert ErrorRow("triton", "bfloat16", "some heads", 0.0, 1.0, 0).problem is None


@pytest.mark.parametrize(
    ("name", "scores", "is_promised"),
    [
        ("triton", Scores(softcap=1.0), True),
        ("varlen", Scores(window=5), True),
        ("varlen", Scores(softcap=1.0), False),
        ("varlen", Scores(sinks=torch.zeros(1)), False),
        ("padded", Scores(), False),
    ],
)
def test_bits_are_held_against_those_who_promise_them(name: str, scores: Scores, is_promised: bool) -> None:
    assert keeps_bits(name, scores) == is_promised


def test_an_error_that_is_not_a_number_does_not_hold() -> None:
    assert ErrorRow("triton", "float16", "some heads", math.nan, 1.0, 0).problem is not None


def test_slots_that_no_sequence_sees_are_forgotten_and_no_others() -> None:
    layer = make_layer(HeadSizes(4, 2, 8, 8), (1, 17), 16, torch.float32, CPU)
    layer.forget_unseen()
    assert int((~layer.keys[:, 0, 0].isnan()).sum()) == 18
    assert layer.attend_each(Scores(), torch.float32, CPU).isfinite().all()


def test_blocks_of_a_layer_are_scattered_and_each_has_one_owner() -> None:
    tables = make_layer(HeadSizes(4, 2, 8, 8), (64, 64, 64), 16, torch.float32, CPU).decoded.tables
    assert sorted(tables.flatten().tolist()) == list(range(12))
    assert tables.flatten().tolist() != list(range(12))


@pytest.mark.parametrize(("layer_bytes", "count"), [(1 << 20, 64), (1 << 22, 32), (1 << 30, 1)])
def test_layers_in_turn_are_more_than_a_cache_holds(layer_bytes: int, count: int) -> None:
    assert num_layers_of(layer_bytes) == count


GRAPHS = GraphRow("120M", "float32", 100.0, 250.0, 1.5, 64, 0, [])
LONG = LongPromptRow("1B", 16_384, 2048, 1.0, 2 << 30, 1 << 29, 3 << 30, ["flash"], [])
SAMPLER = SamplerRow("top_k", 64, 1024, 10.0, 192, 0, None, False)
QUANTIZED = QuantizedRow("int4", "packed_int4", 17, 0.002, 0.01, 10.0, 20.0)
GROUP = GroupRow("NCCL", True, 5.0, "captured", True)
PARITY = Parity(16, [3], 0.01, 100, 0.02, 0.01, 0.02)


@pytest.mark.parametrize(
    "row",
    [
        GRAPHS,
        replace(GRAPHS, dtype="bfloat16", num_different=2),  # rows of padding may change a kernel
        LONG,
        replace(LONG, weight_bytes=None, peak_bytes=None),
        SAMPLER,
        QUANTIZED,
        replace(SAMPLER, wait="called a synchronizing CUDA operation", may_wait=True),
        replace(QUANTIZED, num_rows=0, error=None, call_us=None, bfloat16_us=None),
        GROUP,
        replace(GROUP, capture="not captured: x", is_captured_right=None),
        PARITY,
        Note("not on cpu"),
    ],
    ids=repr,
)
def test_what_is_as_it_must_be_has_no_problem(row: Row) -> None:
    assert row.problem is None
    assert str(row)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (replace(GRAPHS, num_different=1), "1 of 64 sequences have other tokens with graphs"),
        (replace(GRAPHS, dtype="bfloat16", warnings=["no graphs"]), "no graphs"),
        (replace(LONG, whole_score_kernels=["aten::_softmax"]), "attention kept all scores: aten::_softmax"),
        (replace(LONG, peak_bytes=4 << 30), "steps take 1.50 GiB beside weights and KV cache"),
        (replace(SAMPLER, num_different=1), "1 of 192 tokens are not the CPU's (top_k)"),
        (
            replace(SAMPLER, wait="called a"),
            "the host waits for the device before the tokens are read (top_k): called a",
        ),
        (replace(QUANTIZED, error=0.2), "int4 (packed_int4) at 17 rows is 0.200 off"),
        (replace(QUANTIZED, error=math.nan), "int4 (packed_int4) at 17 rows is nan off"),
        (replace(GROUP, is_right=False), "all_reduce over NCCL of one rank changes its tensor"),
        (replace(GROUP, is_captured_right=False), "a captured all_reduce changes its tensor"),
        (replace(PARITY, mean_difference=1.0), "the engine and transformers differ by more than bfloat16's rounding"),
        (Failed("triton", "OutOfResources: x"), "triton: FAILED with OutOfResources: x"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_must_hold_and_does_not_is_a_problem(row: Row, problem: str) -> None:
    assert row.problem == problem


def test_lines_have_their_numbers() -> None:
    assert (
        str(SpeedRow("triton", 8, 1024, 20.0, 10.0, 5.0))
        == "   triton     8    1024       20.0       10.0      5.0    50.0%"
    )
    assert (
        str(SpeedRow("padded", 8, 1024, 20.0, None, 5.0))
        == "   padded     8    1024       20.0          -      5.0    25.0%"
    )
    assert str(GRAPHS) == "  120M  float32     100.0       250.0   2.50       1.5  0 of 64 sequences differ"
    assert "peak 3.00 GiB: weights 2.00, KV cache 0.50, the rest 0.50" in str(LONG)
    assert str(QUANTIZED) == "         int4    17   0.0020  0.010      10.0      20.0   2.00  packed_int4"
    assert str(DecodeRow("8B", 1, None, 200.0, None, "needs 20 GiB")) == "    8B     1 needs 20 GiB"


@pytest.mark.parametrize(
    ("error", "next_error", "left_bytes", "is_right"),
    [
        ("OutOfMemoryError: the GPU had no memory", None, 0, True),
        (None, None, 0, False),
        ("ValueError", None, 0, False),
        ("OutOfMemoryError", "OutOfMemoryError", 0, False),
        ("OutOfMemoryError", None, 256 << 20, False),
    ],
)
def test_a_step_out_of_memory_fails_by_itself_and_leaves_nothing(
    error: str | None, next_error: str | None, left_bytes: int, is_right: bool
) -> None:
    assert (memory_problem(error, next_error, left_bytes, "OutOfMemoryError") is None) == is_right


@pytest.mark.parametrize(
    ("outcome", "device_type", "is_right"),
    [
        (Outcome("IndexError", None), "cpu", True),
        (Outcome("IndexError", None, "IndexError"), "cpu", False),
        (Outcome(None, None), "cpu", False),
        (Outcome(None, "a step broke the device: AcceleratorError"), "cuda", True),
        (Outcome("AcceleratorError", None), "cuda", False),
        (Outcome(None, "a step failed on one of several ranks"), "cuda", False),
    ],
)
def test_a_bad_index_ends_what_it_breaks(outcome: Outcome, device_type: str, is_right: bool) -> None:
    assert (index_problem(outcome, device_type) is None) == is_right


def test_a_bad_index_fails_its_step_alone_on_a_cpu() -> None:
    assert try_bad_index(CPU) == Outcome("IndexError", None, None)


def test_attention_kernels_are_known_by_their_names() -> None:
    kernels = ["aten::linear", "void flash_fwd_kernel<X>", "fmha_cutlassF_bf16_aligned", "aten::_softmax", "flash" * 20]
    assert fused_among(kernels) == ["flash" * 12, "fmha_cutlassF_bf16_aligned", "void flash_fwd_kernel<X>"]


def test_nothing_is_captured_on_a_cpu_and_the_part_says_so() -> None:
    assert [str(row) for row in check_graphs(BENCH)] == ["not on cpu: nothing is captured there"]


def test_speed_counts_all_tokens_until_the_last() -> None:
    assert tokens_per_s([Generated([1, 2], [0.5, 1.0]), Generated([1, 2, 3], [0.5, 1.0, 2.0])]) == 2.5


def test_tokens_that_differ_are_counted() -> None:
    assert num_different([1, 2, 3], [1, 5, 4]) == 2


def test_an_error_is_relative_to_the_exact_product() -> None:
    assert relative_error(torch.tensor([1.1, 2.0]), torch.tensor([1.0, 2.0])) == pytest.approx(0.1 / math.sqrt(5))


def fails() -> Row:
    raise ValueError("too\n  wide")


def test_a_line_that_fails_leaves_the_next_ones() -> None:
    assert row_or_failure("a line", fails, lambda: True) == Failed("a line", "ValueError: too wide")
    with pytest.raises(ValueError, match="wide"):
        row_or_failure("a line", fails, lambda: False)


def test_an_error_is_told_in_one_line() -> None:
    assert told(ValueError("x\n y")) == "ValueError: x y"
    assert len(told(ValueError("x" * 1000))) < 450


def test_an_error_ends_its_part_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def rows(_bench: Bench) -> Rows:
        yield Note("the first")
        yield fails()

    told_messages: list[object] = []
    ended = run_part(Part(rows), BENCH, told_messages.append)
    assert ended.error == "ValueError: too wide"
    assert len(told_messages) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_call_takes_some_microseconds() -> None:
    assert 0 < measure_us(lambda: None, CPU) < 1000
