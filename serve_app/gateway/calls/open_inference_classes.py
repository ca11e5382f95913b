"""Triton's classification extension: of an output's numbers the largest, each with its index and label, as texts.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
"""

from collections.abc import Mapping, Sequence

import numpy as np

from serve_app.errors import RequestError
from serve_app.gateway.calls.open_inference_tensors import BYTES, NamedTensor, PortSpec
from serve_app.preprocessing.arrays import to_array

_CLASSES = "classification"
_HINTS = frozenset({"content_type"})  # MLServer's, which says how its own client shows a tensor
_SHARED_MEMORY = "shared_memory_"
_MAX_CLASSES = 2**31


def class_count(name: str, parameters: Mapping[str, object]) -> int | None:
    """How many classes are wanted of an output, by its parameters; None: its numbers. Raises RequestError."""
    field = f"outputs.{name[:64]}"
    refuse_shared_memory(field, parameters)
    for key in parameters:
        if key != _CLASSES and key not in _HINTS:
            raise RequestError(f"{field}: parameter {key[:64]!r} is unknown; leave it out", field=field)
    count = parameters.get(_CLASSES)
    if count is not None and not (type(count) is int and 0 <= count < _MAX_CLASSES):
        raise RequestError(f"{field}: {_CLASSES} is not a number of classes", field=field)
    return count or None if isinstance(count, int) else None


def refuse_shared_memory(field: str, parameters: Mapping[str, object]) -> None:
    """Raises RequestError: a server that others reach over a network shares no memory with them."""
    if any(key.startswith(_SHARED_MEMORY) for key in parameters):
        raise RequestError(
            f"{field} is in shared memory, which is not served; send and take the data itself", field=field
        )


def check_classes(classes: Mapping[str, int], specs: Sequence[PortSpec]) -> None:
    """Raises RequestError where classes are wanted of an output that has no numbers."""
    for spec in specs:
        if spec.name in classes and spec.datatype in (BYTES, "BOOL"):
            field = f"outputs.{spec.name}"
            raise RequestError(f"{field}: {_CLASSES} is for outputs of numbers, not {spec.datatype}", field=field)


def classified(tensor: NamedTensor, count: int, labels: Sequence[str]) -> NamedTensor:
    """The `count` largest numbers of each row of a tensor [B, ...] as BYTES [B, count]: `value:index` or
    `value:index:label`."""
    array = to_array(tensor.to_data())
    rows = array.reshape(array.shape[0], -1) if array.ndim > 1 else array.reshape(1, -1)
    kept = min(count, rows.shape[1])
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :kept]
    texts = [_shown(row[index], int(index), labels) for row, best in zip(rows, order, strict=True) for index in best]
    shape = (len(rows), kept) if array.ndim > 1 else (kept,)
    return NamedTensor(tensor.name, BYTES, shape, texts=tuple(texts))


def _shown(value: np.generic, index: int, labels: Sequence[str]) -> bytes:
    number = f"{value:f}" if value.dtype.kind == "f" else str(value)
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{number}:{index}{label}".encode()
