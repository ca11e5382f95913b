"""Tensors outside torch, and requests for models that are done with an entry after one step."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Dtype, as torch names it, and shape of a named tensor; a dimension is a size or the name of a varying one."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class TensorData:
    """A tensor outside torch: little-endian, in C order."""

    dtype: str  # as torch names it; bool is one byte
    shape: tuple[int, ...]
    data: bytes = field(repr=False)


Item = dict[str, TensorData]  # the named inputs, or outputs, of one entry of a request


PATH_BASELINE = "path_baseline"  # [T] int64: token ids where a path begins; -1: an embedding of zeros
PATH_POSITION = "path_position"  # [B] float32: where on the path from the baseline (0) to the input (1)
PATH_TARGET = "path_target"  # [B] int64: which of the outputs
GRADIENT_OUTPUTS = {
    "attributions": TensorSpec("float32", ("tokens",)),  # the output's slope along the path, of each token
    "value": TensorSpec("float32", ("batch",)),
}


@dataclass(frozen=True, slots=True)
class InferRequest:
    """Entries for a model that is done with each after one step."""

    request_id: str
    model: str
    items: list[Item]
    queue_timeout_s: float | None = None
    priority: int = 0  # the lowest comes first
    time_left_s: float | None = None  # from when it was sent; None: any
    trace: dict[str, str] = field(default_factory=dict)  # its W3C trace context; empty: it is not traced
    has_gradients: bool = False  # items have PATH_* beside what the model takes; GRADIENT_OUTPUTS are given


@dataclass(frozen=True, slots=True)
class InferResult:
    """The outputs of an InferRequest."""

    outputs: list[Item]  # beside the request's items
