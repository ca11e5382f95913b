"""Tensors outside torch, as numpy arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.types.dtypes import TENSOR_DTYPES
from serve_app.types.tensors import TensorData

NUMPY_DTYPES: dict[str, np.dtype[np.generic]] = {name: np.dtype(name) for name in TENSOR_DTYPES if name != "bfloat16"}


def to_array(tensor: TensorData) -> NDArray[Any]:
    """The array of a tensor, of its shape and dtype; bfloat16 becomes float32."""
    if tensor.dtype == "bfloat16":
        bits = np.frombuffer(tensor.data, dtype=np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(tensor.shape)
    return np.frombuffer(tensor.data, dtype=NUMPY_DTYPES[tensor.dtype]).reshape(tensor.shape)


def to_tensor_data(array: NDArray[np.generic]) -> TensorData:
    """The tensor of an array."""
    return TensorData(array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes())


def integer_tensor(values: list[int]) -> TensorData:
    """values [N] -> int64 [N]."""
    return TensorData("int64", (len(values),), np.asarray(values, dtype=np.int64).tobytes())


def to_bfloat16(array: NDArray[np.float32]) -> TensorData:
    """The tensor of an array, rounded to bfloat16 (to the nearest, ties to even)."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return TensorData("bfloat16", array.shape, rounded.tobytes())


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities along the last dimension, computed in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Each value between 0 and 1, computed in float64."""
    values = logits.astype(np.float64)
    positive = 1 / (1 + np.exp(-np.abs(values)))
    return np.where(values >= 0, positive, 1 - positive)
