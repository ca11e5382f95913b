"""Named tensors from JSON, checked against what a model declares before anything of their size is made."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from serve_app.backend.text_models import fits
from serve_app.errors import RequestError
from serve_app.preprocessing.arrays import NUMPY_DTYPES, to_array, to_bfloat16, to_tensor_data
from serve_app.preprocessing.packing import check_packing
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import Item, TensorData, TensorSpec

MAX_RANK = 8
_KEYS = {"dtype", "shape", "data"}


def read_inputs(inputs: Mapping[str, object], model: ModelDescription) -> Item:
    """The item of a request's named tensors: nested lists, or {"dtype", "shape", "data"}. Raises RequestError.

    Messages quote names, counts and sizes, never a value: it may be a user's text.
    """
    specs = model.inputs
    for name in inputs:
        if name not in specs:
            raise RequestError(f"inputs.{name[:64]} is unknown; the model takes {sorted(specs)}", field="inputs")
    missing = sorted(specs.keys() - inputs.keys())
    if missing:
        raise RequestError(f"inputs.{missing[0]} is missing; the model takes {sorted(specs)}", field="inputs")
    item = {name: _read(f"inputs.{name}", value, specs[name]) for name, value in inputs.items()}
    _check_varying(item, specs)
    check_packing(item, model)
    return item


def check_tensors(item: Item, model: ModelDescription) -> None:
    """What dtypes and shapes do not say of a request's tensors: whether they fit together. Raises RequestError."""
    for name, tensor in item.items():
        if "float" in tensor.dtype and not np.isfinite(to_array(tensor)).all():
            raise RequestError(f"inputs.{name} holds a number that is not finite", field=f"inputs.{name}")
        if tensor.dtype == "bool" and any(byte > 1 for byte in set(tensor.data)):
            raise RequestError(f"inputs.{name} holds a byte that is neither 0 nor 1", field=f"inputs.{name}")
    _check_varying(item, model.inputs)
    check_packing(item, model)


def write_output(tensor: TensorData) -> list[object]:
    """A tensor's elements in C order; a number that is not finite becomes None."""
    array = to_array(tensor).reshape(-1)
    values: list[object] = array.tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [value if isinstance(value, float) and math.isfinite(value) else None for value in values]
    return values


def _read(field: str, value: object, spec: TensorSpec) -> TensorData:
    if isinstance(value, dict):
        unknown = sorted(value.keys() ^ _KEYS if "dtype" in value else value.keys() ^ (_KEYS - {"dtype"}))
        if unknown:
            raise RequestError(f"{field}: send dtype, shape and data, or nested lists", field=field)
        dtype = value.get("dtype", spec.dtype)
        if dtype != spec.dtype:
            raise RequestError(f"{field}.dtype is another than the model takes; send {spec.dtype}", field=field)
        shape, data = _given_shape(field, value["shape"]), value["data"]
    else:
        shape, data = _shape_of(field, value), value
    _check_shape(field, shape, spec)
    flat = flatten(field, data, shape)
    return tensor_of(field, flat, shape, spec.dtype)


def _given_shape(field: str, shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise RequestError(f"{field}.shape is not a list of at most {MAX_RANK} sizes", field=f"{field}.shape")
    for index, size in enumerate(shape):
        if type(size) is not int or size < 0:
            message = f"{field}.shape[{index}] is not a size; send integers from 0 up"
            raise RequestError(message, field=f"{field}.shape")
    return tuple(shape)


def _shape_of(field: str, value: object) -> tuple[int, ...]:
    """The shape that the first elements show; flatten checks the others."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > MAX_RANK:
            raise RequestError(f"{field} is nested more than {MAX_RANK} lists deep", field=field)
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _check_shape(field: str, shape: tuple[int, ...], spec: TensorSpec) -> None:
    if not fits(shape, spec.shape):
        raise RequestError(f"{field} has shape {list(shape)}, the model takes {list(spec.shape)}", field=field)
    if 0 in shape:
        raise RequestError(f"{field} is empty: its shape is {list(shape)}", field=field)


def flatten(field: str, data: object, shape: tuple[int, ...]) -> list[Any]:
    """The elements, as many as the shape says; nested lists must be of that shape, a flat one is taken too."""
    num_elements = math.prod(shape)
    is_flat = isinstance(data, list) and not any(isinstance(item, list) for item in data)
    if is_flat and isinstance(data, list):
        if len(data) != num_elements:
            message = f"{field} has {len(data)} elements, its shape {list(shape)} says {num_elements}"
            raise RequestError(message, field=field)
        return data
    level: list[Any] = [data]
    for size in shape:
        if any(not isinstance(item, list) or len(item) != size for item in level):
            raise RequestError(f"{field} is ragged: its lists are not all of shape {list(shape)}", field=field)
        level = list(itertools.chain.from_iterable(level))
    return level


def tensor_of(field: str, values: list[Any], shape: tuple[int, ...], dtype: str) -> TensorData:
    """The tensor of elements from JSON. Raises RequestError for one that the dtype cannot hold."""
    for index in _misfits(values, dtype):
        raise RequestError(f"{field}: element {index} is not {dtype}, or outside its range", field=field)
    numpy_dtype = np.dtype(np.float32) if dtype == "bfloat16" else NUMPY_DTYPES[dtype]
    exact = np.float64 if "float" in dtype else numpy_dtype  # of integers numpy would choose float64 for some
    with np.errstate(over="ignore"):
        array = np.asarray(values, dtype=exact).astype(numpy_dtype).reshape(shape)
    tensor = to_bfloat16(array) if dtype == "bfloat16" else to_tensor_data(array)
    if array.dtype.kind == "f" and not np.isfinite(to_array(tensor)).all():  # rounding may have made it infinite
        raise RequestError(f"{field} holds a number that is too large for {dtype}", field=field)
    return tensor


def _misfits(values: list[Any], dtype: str) -> Iterator[int]:
    """Places of the elements that the dtype cannot hold."""
    if dtype == "bool":
        return (index for index, value in enumerate(values) if type(value) is not bool)
    if "float" in dtype:
        return (
            index for index, value in enumerate(values) if type(value) not in (int, float) or not math.isfinite(value)
        )
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    return (index for index, value in enumerate(values) if type(value) is not int or not low <= value <= high)


def _check_varying(item: Item, specs: Mapping[str, TensorSpec]) -> None:
    """Varying dimensions of one name have one size."""
    sizes: dict[str, tuple[str, int]] = {}
    for name, tensor in item.items():
        for label, size in zip(specs[name].shape, tensor.shape, strict=True):
            if not isinstance(label, str):
                continue
            other, known = sizes.setdefault(label, (name, size))
            if known != size:
                raise RequestError(
                    f"inputs.{name} has {size} for {label!r}, but inputs.{other} has {known}", field=f"inputs.{name}"
                )
