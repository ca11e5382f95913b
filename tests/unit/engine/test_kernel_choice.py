"""Kernels are timed once, kept, and the fastest is taken."""

import json
from pathlib import Path

import pytest
import torch

from serve_app.engine import kernel_choice
from serve_app.engine.kernel_choice import BATCH_ROWS, STEP_ROWS, choose_kernel, fastest, kernel_times
from serve_app.errors import ConfigError
from serve_app.models.compiled.build import compiled_kernels
from serve_app.models.linear_kernels import KERNELS, why_no_kernel
from tests.compiled import kernels_or_skip

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _few_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "_COLD_BYTES", 8 * 2**20)


@pytest.mark.parametrize(
    ("times", "rows", "expected"),
    [
        ({"torch": [7.5, 56, 209, 1942], "fbgemm": [7.5, 15, 50, 185]}, STEP_ROWS, "fbgemm"),
        ({"torch": [7.5, 56, 209, 100], "fbgemm": [7.5, 15, 50, 185]}, BATCH_ROWS, "torch"),
        ({"torch": [10, 10, 10, 10], "onednn": [9.5, 9.5, 9.5, 1]}, STEP_ROWS, "torch"),  # too little is gained
        ({"torch": [10, 10, 10, 10], "gemv": [1, 10, 10, 10], "onednn": [9, 9, 9, 9]}, STEP_ROWS, "gemv"),
        ({"torch": [10, 10, 10, 10], "gemv": [1, 10, 10, 16], "onednn": [8, 8, 8, 15]}, STEP_ROWS, "onednn"),
    ],
)
def test_the_fastest_at_the_numbers_of_rows_is_taken(
    times: dict[str, list[float]], rows: tuple[int, ...], expected: str
) -> None:
    assert fastest(times, rows) == expected


def test_compiled_kernels_are_timed_beside_the_others_and_kept_for_themselves(tmp_path: Path) -> None:
    compiled, times_file = kernels_or_skip(), tmp_path / "kernels.json"
    without, times = (kernel_times(torch.float32, times_file, own) for own in (None, compiled))
    assert set(times) == {*without, "compiled"}
    assert len(json.loads(times_file.read_text())) == 2
    assert choose_kernel("compiled", torch.bfloat16, CPU, STEP_ROWS, times_file, compiled).name == "compiled"
    with pytest.raises(ConfigError, match="linear_kernel=compiled cannot be had: it multiplies numbers of float32"):
        choose_kernel("compiled", torch.float16, CPU, STEP_ROWS, times_file, compiled)
    with pytest.raises(ConfigError, match="linear_kernel=compiled cannot be had: kernels of steps are not compiled"):
        choose_kernel("compiled", torch.float32, CPU, STEP_ROWS, times_file)


def test_why_kernels_are_not_compiled_is_said(tmp_path: Path) -> None:
    own = compiled_kernels(tmp_path, "no-such-compiler")
    expected = (
        r"compiled cannot be had: kernels of steps are not compiled here \(no C\+\+ compiler: no-such-compiler\); use"
    )
    with pytest.raises(ConfigError, match=expected):
        choose_kernel("compiled", torch.float32, CPU, STEP_ROWS, tmp_path / "k", own.kernels, own.how)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_kernels_that_there_are_are_timed_and_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    times_file = tmp_path / "new" / "kernels.json"
    times = kernel_times(dtype, times_file)
    assert set(times) == {name for name in KERNELS if why_no_kernel(name, dtype) is None}
    assert all(len(row_times) == 4 and min(row_times) > 0 for row_times in times.values())
    assert kernel_times(dtype, times_file) == times  # no two measurements are equal
    choice = choose_kernel("auto", dtype, CPU, STEP_ROWS, times_file)
    assert (choice.name, choice.times) == (fastest(times, STEP_ROWS), times)
    assert str(choice).startswith(f"{choice.name} (ms at 1/8/32/128 rows: ")


def test_times_of_another_cpu_or_a_broken_file_are_not_taken(tmp_path: Path) -> None:
    times_file = tmp_path / "kernels.json"
    times_file.write_text(json.dumps({"another CPU": {"torch": [1, 1, 1, 1]}}))
    times = kernel_times(torch.float32, times_file)
    assert len(times) > 1
    assert len(json.loads(times_file.read_text())) == 2
    times_file.write_text('{"another CPU": {"tor')
    assert set(kernel_times(torch.float32, times_file)) == set(times)


def test_where_nothing_can_be_written_kernels_are_timed_all_the_same() -> None:
    assert len(kernel_times(torch.float32, Path("/proc/no-such/kernels.json"))) > 1


def test_a_kernel_that_is_named_is_taken_or_refused(tmp_path: Path) -> None:
    assert str(choose_kernel("onednn", torch.float32, CPU, STEP_ROWS, tmp_path / "k")) == "onednn"
    assert choose_kernel("auto", torch.float32, torch.device("cuda"), STEP_ROWS, tmp_path / "k").name == "torch"
    with pytest.raises(ConfigError, match="linear_kernel=fbgemm cannot be had: it keeps weights in float16"):
        choose_kernel("fbgemm", torch.float32, CPU, STEP_ROWS, tmp_path / "k")
    assert not (tmp_path / "k").exists()
