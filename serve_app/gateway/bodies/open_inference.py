"""JSON bodies and answers of the Open Inference Protocol over HTTP."""

from typing import Any

import msgspec

Parameter = bool | int | float | str


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
