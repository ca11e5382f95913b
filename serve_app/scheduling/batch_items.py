"""Joining the tensors of several entries into one batch, and cutting its outputs apart again. Bytes only: no torch."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from serve_app.errors import InternalError
from serve_app.types.dtypes import DTYPES
from serve_app.types.tensors import Item, TensorData, TensorSpec

BATCH = "batch"  # the varying dimension whose size is an entry's number of rows

Sizes = dict[str, int]  # of an entry's varying dimensions along which it is joined, by name


def joined_sizes(item: Item, specs: Mapping[str, TensorSpec], dim: int) -> Sizes:
    """How much of each varying dimension an entry brings into a batch; at least its number of rows."""
    sizes = {BATCH: 1}
    for name, spec in specs.items():
        if name in item and dim < len(spec.shape):
            label = spec.shape[dim]
            if isinstance(label, str):
                sizes[label] = item[name].shape[dim]
    return sizes


def join_key(item: Item, dim: int) -> tuple[object, ...] | None:
    """Entries of equal keys can be joined; None: this one cannot, with any."""
    parts: list[object] = []
    for name in sorted(item):
        tensor = item[name]
        if dim >= len(tensor.shape):
            return None
        parts.append((name, tensor.dtype, tensor.shape[:dim], tensor.shape[dim + 1 :]))
    return tuple(parts)


def join_items(items: Sequence[Item], dim: int) -> Item:
    """One item of entries of equal keys, along `dim`."""
    if len(items) == 1:
        return items[0]
    return {name: _join([item[name] for item in items], dim) for name in items[0]}


def cut_outputs(outputs: Item, specs: Mapping[str, TensorSpec], sizes: Sequence[Sizes], dim: int) -> list[Item]:
    """Each entry's part of a batch's outputs. Raises InternalError when the module gave another number of rows."""
    if len(sizes) == 1:
        return [outputs]
    cut: list[Item] = [{} for _ in sizes]
    for name, tensor in outputs.items():
        spec = specs.get(name)
        label = spec.shape[dim] if spec is not None and dim < len(spec.shape) else None
        lengths = [entry.get(label, -1) if isinstance(label, str) else -1 for entry in sizes]
        if min(lengths) < 0 or dim >= len(tensor.shape) or sum(lengths) != tensor.shape[dim]:
            raise InternalError(
                f"output {name} has shape {list(tensor.shape)}, which cannot be cut along batch_dim={dim} into "
                f"{len(sizes)} entries; declare its dimension as {BATCH!r}, or set batch_dim: null"
            )
        for item, part in zip(cut, _cut(tensor, lengths, dim), strict=True):
            item[name] = part
    return cut


def _join(tensors: Sequence[TensorData], dim: int) -> TensorData:
    first = tensors[0]
    length = sum(tensor.shape[dim] for tensor in tensors)
    shape = (*first.shape[:dim], length, *first.shape[dim + 1 :])
    if math.prod(first.shape[:dim]) == 1:
        return TensorData(first.dtype, shape, b"".join(tensor.data for tensor in tensors))
    return TensorData(first.dtype, shape, np.concatenate([_rows(tensor, dim) for tensor in tensors], axis=1).tobytes())


def _cut(tensor: TensorData, lengths: Sequence[int], dim: int) -> list[TensorData]:
    rows = _rows(tensor, dim)
    parts = []
    start = 0
    for length in lengths:
        shape = (*tensor.shape[:dim], length, *tensor.shape[dim + 1 :])
        parts.append(TensorData(tensor.dtype, shape, rows[:, start : start + length].tobytes()))
        start += length
    return parts


def _rows(tensor: TensorData, dim: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """The bytes as [outer dimensions, length along dim, bytes of one slice] uint8."""
    outer, inner = math.prod(tensor.shape[:dim]), math.prod(tensor.shape[dim + 1 :])
    shape = (outer, tensor.shape[dim], inner * DTYPES[tensor.dtype].num_bytes)
    return np.frombuffer(tensor.data, dtype=np.uint8).reshape(shape)
