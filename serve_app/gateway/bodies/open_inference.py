"""JSON bodies and answers of the Open Inference Protocol over HTTP."""

from typing import Any

import msgspec

from serve_app.gateway.bodies.openai import Priority

Parameter = bool | int | float | str


class PriorityParameter(msgspec.Struct, kw_only=True):
    """The parameter that a call of named tensors may have."""

    priority: Priority | None = None


class TensorBody(msgspec.Struct, kw_only=True):
    """One input."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Parameter] = {}
    data: Any = None


class OutputBody(msgspec.Struct, kw_only=True):
    """One output that is wanted."""

    name: str
    parameters: dict[str, Parameter] = {}


class InferBody(msgspec.Struct, kw_only=True):
    """`POST /v2/models/{name}/infer`."""

    id: str = ""
    parameters: dict[str, Parameter] = {}
    inputs: list[TensorBody]
    outputs: list[OutputBody] = []


class ShownTensor(msgspec.Struct, omit_defaults=True):
    """One output: its elements in C order, or how many bytes of it follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] = {}
    data: list[object] | None = None


class ShownAnswer(msgspec.Struct, omit_defaults=True):
    """The answer's JSON."""

    model_name: str
    model_version: str
    outputs: list[ShownTensor]
    id: str = ""
    parameters: dict[str, Parameter] = {}


class ShownPort(msgspec.Struct):
    """One input or output of a model."""

    name: str
    datatype: str
    shape: list[int]


class ShownModel(msgspec.Struct):
    """`GET /v2/models/{name}`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[ShownPort]
    outputs: list[ShownPort]


class ConfiguredPort(msgspec.Struct):
    """One input or output of a model's configuration."""

    name: str
    data_type: str
    dims: list[int]


class ShownConfig(msgspec.Struct):
    """`GET /v2/models/{name}/config`: the parts of Triton's configuration that there are."""

    name: str
    platform: str
    backend: str
    max_batch_size: int  # 0: the shapes of inputs and outputs say all
    input: list[ConfiguredPort]
    output: list[ConfiguredPort]


class CountedTime(msgspec.Struct):
    """How many calls, and how long they took together."""

    count: int
    ns: int


class InferStats(msgspec.Struct):
    """Calls that have ended well, and others."""

    success: CountedTime
    fail: CountedTime


class ModelStats(msgspec.Struct):
    """Calls of one model since this Gateway replica has started."""

    name: str
    version: str
    last_inference: int  # Unix time in milliseconds
    inference_count: int
    inference_stats: InferStats


class ShownStats(msgspec.Struct):
    """`GET /v2/models/{name}/stats`."""

    model_stats: list[ModelStats]


class IndexBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /v2/repository/index`."""

    ready: bool | None = None  # only models that can answer
    repository_name: str | None = None  # there is one, whatever it is called


class IndexEntry(msgspec.Struct):
    """One model of the index."""

    name: str
    version: str
    state: str
    reason: str = ""


class ShownServer(msgspec.Struct):
    """`GET /v2`."""

    name: str
    version: str
    extensions: list[str]


class ServerReady(msgspec.Struct):
    """`GET .../ready`."""

    ready: bool


class ServerLive(msgspec.Struct):
    """`GET /v2/health/live`."""

    live: bool
