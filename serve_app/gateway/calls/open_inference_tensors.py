"""Named tensors of the Open Inference Protocol: datatypes, raw bytes, and checks of both."""

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from serve_app.errors import InternalError, RequestError
from serve_app.preprocessing.arrays import to_tensor_data
from serve_app.types.dtypes import TENSOR_DTYPES
from serve_app.types.tensors import TensorData, TensorSpec

BYTES = "BYTES"
MAX_RANK = 8
DTYPE_OF = {one.datatype: name for name, one in TENSOR_DTYPES.items() if one.datatype is not None}
DATATYPE_OF = {dtype: datatype for datatype, dtype in DTYPE_OF.items()}
_LENGTH = struct.Struct("<I")  # stands before each element of BYTES


@dataclass(frozen=True, slots=True)
class PortSpec:
    """One input or output of a model."""

    name: str
    datatype: str
    shape: list[int]  # -1: any size
    labels: tuple[str, ...] = ()  # of its numbers, by index


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """One tensor of a call or an answer, with as many elements as its shape says."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes = field(default=b"", repr=False)  # little-endian, in C order; not of BYTES
    texts: tuple[bytes, ...] = field(default=(), repr=False)  # of BYTES, in C order

    @classmethod
    def of_raw(cls, name: str, datatype: str, shape: Sequence[int], raw: bytes) -> "NamedTensor":
        """A tensor of the bytes that carriers transport. Raises RequestError when they are not what the shape says."""
        checked = checked_shape(name, datatype, shape)
        where = f"inputs.{name[:64]}"
        num_elements = math.prod(checked)
        if datatype == BYTES:
            return cls(name, datatype, checked, texts=_elements(where, raw, num_elements))
        num_bytes = num_elements * element_bytes(datatype)
        if len(raw) != num_bytes:
            raise RequestError(f"{where} has {len(raw)} bytes, its shape {list(checked)} says {num_bytes}", field=where)
        return cls(name, datatype, checked, data=raw)

    @classmethod
    def of_data(cls, name: str, tensor: TensorData) -> "NamedTensor":
        """A tensor of a model's output."""
        return cls(name, DATATYPE_OF[tensor.dtype], tensor.shape, data=tensor.data)

    def raw(self) -> bytes:
        """The bytes that carriers transport."""
        if self.datatype != BYTES:
            return self.data
        return b"".join(piece for text in self.texts for piece in (_LENGTH.pack(len(text)), text))

    def to_data(self) -> TensorData:
        """The tensor as modules take it."""
        return TensorData(DTYPE_OF[self.datatype], self.shape, self.data)


def checked_shape(name: str, datatype: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape, which a tensor of this datatype can have. Raises RequestError."""
    where = f"inputs.{name[:64]}"
    if datatype != BYTES and datatype not in DTYPE_OF:
        known = ", ".join([*DTYPE_OF, BYTES])
        raise RequestError(f"{where} has datatype {datatype[:16]!r}, which is not known; use {known}", field=where)
    if len(shape) > MAX_RANK or any(type(size) is not int or not 0 <= size < 2**63 for size in shape):
        raise RequestError(f"{where}.shape is not a list of at most {MAX_RANK} sizes from 0 up", field=where)
    return tuple(shape)


def element_bytes(datatype: str) -> int:
    """Bytes of one element; not of BYTES."""
    return TENSOR_DTYPES[DTYPE_OF[datatype]].num_bytes


def spec_of(name: str, spec: TensorSpec) -> PortSpec:
    """What a module declares, as the protocol says it."""
    return PortSpec(name, DATATYPE_OF[spec.dtype], [size if isinstance(size, int) else -1 for size in spec.shape])


def words(name: str, texts: Iterable[str]) -> NamedTensor:
    """Texts as BYTES [N]."""
    encoded = tuple(text.encode() for text in texts)
    return NamedTensor(name, BYTES, (len(encoded),), texts=encoded)


def numbers(name: str, values: Sequence[object]) -> NamedTensor:
    """Numbers, or rows of them of one length, as FP32."""
    array = np.asarray(values, dtype=np.float32)
    if array.dtype != np.float32:
        raise InternalError("numbers of an answer are ragged")
    return NamedTensor.of_data(name, to_tensor_data(array))


def _elements(where: str, raw: bytes, num_elements: int) -> tuple[bytes, ...]:
    """Elements with their lengths before them; none is made before all lengths are known to be true."""
    if num_elements * _LENGTH.size > len(raw):
        raise RequestError(f"{where} is too short for {num_elements} elements", field=where)
    spans, position = [], 0
    while position < len(raw):
        end = position + _LENGTH.size
        if end > len(raw):
            break
        (length,) = _LENGTH.unpack_from(raw, position)
        position = end + length
        spans.append((end, position))
        if len(spans) > num_elements:
            break
    if position != len(raw) or len(spans) != num_elements:
        raise RequestError(f"{where}: its bytes are not {num_elements} elements with their lengths", field=where)
    return tuple(raw[start:end] for start, end in spans)
