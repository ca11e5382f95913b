"""Numbers in one byte are those of ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest

from serve_app.preprocessing.float8 import FLOAT8_KINDS, from_float8, to_float8

KINDS: dict[str, type] = {"fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}
assert set(KINDS) == FLOAT8_KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_and_every_tie_is_rounded_as_ml_dtypes_does(kind: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    numbers = codes.view(KINDS[kind]).astype(np.float32)
    finite = np.isfinite(numbers)
    assert np.array_equal(from_float8(codes[finite], kind), numbers[finite])
    exact = np.unique(numbers[finite])
    asked = np.concatenate([exact, (exact[:-1] + exact[1:]) / 2, exact * np.float32(1.01)])
    asked = asked[np.abs(asked) <= exact.max()]
    assert np.array_equal(to_float8(asked, kind), asked.astype(KINDS[kind]).view(np.uint8))


@pytest.mark.parametrize(("kind", "largest"), [("fp8_e4m3", 448.0), ("fp8_e5m2", 57344.0)])
def test_what_is_too_large_becomes_the_largest(kind: str, largest: float) -> None:
    codes = to_float8(np.array([1e9, -1e9, -0.0], dtype=np.float32), kind)
    assert from_float8(codes, kind).tolist() == [largest, -largest, 0.0]
