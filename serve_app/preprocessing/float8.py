"""Numbers in one byte: the formats E4M3 and E5M2.

Open Compute Project, "OCP 8-bit Floating Point Specification (OFP8)", 2023.
"""

import numpy as np
from numpy.typing import NDArray

_SIGN = 0x80


def to_float8(array: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    """The codes of the nearest numbers, ties to the even code; what is too large becomes the largest. Same shape.

    kind: one of FLOAT8_KINDS.
    """
    values = _VALUES[kind]
    between = (values[:-1] + values[1:]) / 2
    sizes = np.abs(array.astype(np.float64))
    codes = np.searchsorted(between, sizes)
    ends = np.minimum(codes, len(between) - 1)
    codes += (between[ends] == sizes) & (codes == ends) & (codes % 2 == 1)
    return np.where(np.signbit(array), codes | _SIGN, codes).astype(np.uint8)


def from_float8(codes: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """The numbers of finite codes. Same shape."""
    values = _VALUES[kind][codes & (_SIGN - 1)]
    numbers: NDArray[np.float32] = np.where(codes & _SIGN, -values, values).astype(np.float32)
    return numbers


def _finite_values(num_mantissa_bits: int, bias: int, num_codes: int) -> NDArray[np.float64]:
    """The number of each finite code without a sign, from the smallest."""
    codes = np.arange(num_codes)
    exponents, steps = codes >> num_mantissa_bits, (codes & ((1 << num_mantissa_bits) - 1)) / (1 << num_mantissa_bits)
    normal = (1 + steps) * 2.0 ** (exponents - bias)
    return np.where(exponents > 0, normal, steps * 2.0 ** (1 - bias))


_VALUES: dict[str, NDArray[np.float64]] = {
    "fp8_e4m3": _finite_values(3, 7, 0x7F),  # 0x7f is no number
    "fp8_e5m2": _finite_values(2, 15, 0x7C),  # 0x7c is infinity
}
FLOAT8_KINDS = frozenset(_VALUES)
