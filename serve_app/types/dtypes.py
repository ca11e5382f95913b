"""Every number format: its size, and what safetensors and the Open Inference Protocol call it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dtype:
    """One number format."""

    name: str  # as torch and numpy name it
    bits: int
    safetensors: str  # https://huggingface.co/docs/safetensors, "Format"
    datatype: str | None = None  # of the Open Inference Protocol; None: no request carries it

    @property
    def num_bytes(self) -> int:
        """Of one element."""
        return self.bits // 8

    @property
    def is_plain_float(self) -> bool:
        """Whether weights that are not quantized may be stored in it."""
        return self.bits >= 16 and "float" in self.name


_KNOWN = (
    Dtype("bool", 8, "BOOL", "BOOL"),
    *(Dtype(f"int{bits}", bits, f"I{bits}", f"INT{bits}") for bits in (8, 16, 32, 64)),
    *(Dtype(f"uint{bits}", bits, f"U{bits}", f"UINT{bits}") for bits in (8, 16, 32, 64)),
    Dtype("float16", 16, "F16", "FP16"),
    Dtype("bfloat16", 16, "BF16", "BF16"),
    Dtype("float32", 32, "F32", "FP32"),
    Dtype("float64", 64, "F64", "FP64"),
    Dtype("complex64", 64, "C64"),
    Dtype("float8_e4m3fn", 8, "F8_E4M3"),
    Dtype("float8_e5m2", 8, "F8_E5M2"),
    Dtype("float8_e8m0fnu", 8, "F8_E8M0"),
    Dtype("float8_e4m3fnuz", 8, "F8_E4M3FNUZ"),
    Dtype("float8_e5m2fnuz", 8, "F8_E5M2FNUZ"),
    Dtype("float6_e2m3fn", 6, "F6_E2M3"),
    Dtype("float6_e3m2fn", 6, "F6_E3M2"),
    Dtype("float4_e2m1fn", 4, "F4"),
)
DTYPES = {one.name: one for one in _KNOWN}
DTYPES_BY_CODE = {one.safetensors: one for one in _KNOWN}
TENSOR_DTYPES = {one.name: one for one in _KNOWN if one.datatype is not None}  # that requests and stages exchange
SERVED_DTYPES = ("float32", "bfloat16", "float16")  # that a model's weights and KV cache may have
