"""Vectors as bytes: within JSON as base64, or as a whole answer."""

import base64
import sys
from dataclasses import dataclass

import msgspec
import numpy as np

from serve_app.backend.text_models import Vectors
from serve_app.errors import RequestError
from serve_app.gateway.bodies.inference import AnswerList, EmbeddingList, EmbeddingsBody, TokenUsage
from serve_app.gateway.bodies.known_apis import Pooled, PooledList
from serve_app.preprocessing.arrays import to_bfloat16
from serve_app.preprocessing.float8 import FLOAT8_KINDS, to_float8

BYTE_FORMATS = ("bytes", "bytes_only")
_NUM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}
_MAX_METADATA_BYTES = 32_768  # half of what Python's own clients take as one header


class VectorPlace(msgspec.Struct, frozen=True):
    """Where one vector stands in the bytes of all."""

    index: int
    embed_dtype: str
    endianness: str
    start: int
    end: int
    shape: list[int]


class VectorPlaces(AnswerList, frozen=True):
    """What vLLM tells of an answer of bytes, in the header `metadata`."""

    model: str
    data: list[VectorPlace]
    usage: TokenUsage


@dataclass(frozen=True, slots=True)
class VectorBytes:
    """An answer of bytes; metadata: JSON, None where it is not wanted."""

    content: bytes
    metadata: bytes | None


def base64_of(row: Vectors, dtype: str = "float32", endianness: str = "little") -> str:
    """A vector's numbers [D] in the bytes of a dtype."""
    return base64.b64encode(_bytes_of(row, dtype, endianness)).decode()


def vector_bytes(answer: EmbeddingList | PooledList, body: EmbeddingsBody) -> VectorBytes:
    """The vectors of an answer, which base64_of has made, one after the other. Raises RequestError."""
    vectors = [one.data if isinstance(one, Pooled) else one.embedding for one in answer.data]
    pieces = [base64.b64decode(str(vector)) for vector in vectors]
    content = b"".join(pieces)
    if body.encoding_format == "bytes_only":
        return VectorBytes(content, None)
    dtype, endianness = body.embed_dtype or "float32", body.endianness or "little"
    places, start = [], 0
    for index, piece in enumerate(pieces):
        shape = [len(piece) // _NUM_BYTES[dtype]]
        places.append(VectorPlace(index, dtype, endianness, start, start + len(piece), shape))
        start += len(piece)
    metadata = msgspec.json.encode(VectorPlaces(answer.model, places, answer.usage))
    if len(metadata) > _MAX_METADATA_BYTES:
        message = (
            f"encoding_format=bytes puts {len(metadata)} bytes of metadata for {len(pieces)} vectors into a header; "
            "send fewer inputs, or encoding_format=bytes_only"
        )
        raise RequestError(message, field="encoding_format")
    return VectorBytes(content, metadata)


def _bytes_of(row: Vectors, dtype: str, endianness: str) -> bytes:
    if dtype in FLOAT8_KINDS:
        return to_float8(row, dtype).tobytes()
    if dtype == "bfloat16":
        numbers = np.frombuffer(to_bfloat16(row).data, dtype="<u2")
    else:
        numbers = row.astype("<f2" if dtype == "float16" else "<f4")
    is_swapped = (sys.byteorder if endianness == "native" else endianness) == "big"
    return (numbers.byteswap() if is_swapped else numbers).tobytes()
