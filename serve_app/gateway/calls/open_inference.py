"""The Open Inference Protocol v2 (KServe, Triton) without its carriers: named tensors in, named tensors out.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from serve_app.errors import ModelNotFoundError, RequestError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.open_inference_classes import check_classes, classified
from serve_app.gateway.calls.open_inference_counts import CallCounts
from serve_app.gateway.calls.open_inference_ports import InferCall, ModelPort, port_of
from serve_app.gateway.calls.open_inference_tensors import BYTES, NamedTensor, PortSpec
from serve_app.types.models import ModelDescription

VERSION = "1"  # of every model: a new one is deployed under a name of its own
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
PLATFORM = "rayshard_pytorch"
BACKEND = "rayshard"
READY, UNAVAILABLE = "READY", "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """What a model gives for a call, or a piece of it."""

    model: str
    call_id: str
    outputs: list[NamedTensor]
    parameters: Mapping[str, bool | int | float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """Inputs and outputs of one model."""

    name: str
    inputs: list[PortSpec]
    outputs: list[PortSpec]


@dataclass(frozen=True, slots=True)
class IndexedModel:
    """One model of the index."""

    name: str
    state: str  # READY, UNAVAILABLE


class OpenInference:
    """Calls of the protocol, for every kind of model."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    @property
    def max_request_bytes(self) -> int:
        """What one call may weigh."""
        return self._plane.config.max_request_bytes

    def is_ready(self) -> bool:
        """Whether every model can answer."""
        return self._plane.is_ready

    def is_model_ready(self, name: str, model_version: str) -> bool:
        """Whether a copy of the model can answer, or would start for a request. Raises ModelNotFoundError."""
        self._describe(name, model_version)
        if self._plane.intake.is_closed:
            return False
        report = self._plane.backend.health()
        copies = report.models.get(name, [])
        return report.is_healthy or name in report.asleep or any(copy.state == "ready" for copy in copies)

    def metadata(self, name: str, model_version: str) -> ModelMetadata:
        """What the model takes and gives. Raises ModelNotFoundError."""
        port = port_of(self._describe(name, model_version), self._plane)
        return ModelMetadata(name, port.inputs, port.outputs)

    def index(self, *, is_ready_only: bool) -> list[IndexedModel]:
        """The models that are there for the caller."""
        found = [
            IndexedModel(model.name, READY if self.is_model_ready(model.name, "") else UNAVAILABLE)
            for model in self._plane.models.all()
        ]
        return [one for one in found if one.state == READY or not is_ready_only]

    def statistics(self, name: str, model_version: str) -> list[tuple[str, CallCounts]]:
        """How often a model was called here, or each when no name is given. Raises ModelNotFoundError."""
        models = [self._describe(name, model_version)] if name else self._plane.models.all()
        return [(model.name, self._plane.inference_counts.of(model.name)) for model in models]

    async def infer(self, call: InferCall) -> InferAnswer:
        """The whole answer. Raises a RayshardError."""
        await self._plane.models.meet(call.model)
        model = self._describe(call.model, call.version)
        with self._plane.inference_counts.counted(model.name):
            port = self._checked_port(model, call)
            outputs = await port.run(call)
            return InferAnswer(model.name, call.call_id, _requested(outputs, call, port))

    async def stream(self, call: InferCall) -> AsyncIterator[InferAnswer]:
        """The answer in pieces, as they come. Raises a RayshardError."""
        await self._plane.models.meet(call.model)
        model = self._describe(call.model, call.version)
        with self._plane.inference_counts.counted(model.name):
            port = self._checked_port(model, call)
            async for outputs in port.stream(call):
                yield InferAnswer(model.name, call.call_id, _requested(outputs, call, port))

    def _describe(self, name: str, model_version: str) -> ModelDescription:
        model = self._plane.models.describe(name)
        if model_version not in ("", VERSION):
            raise ModelNotFoundError(
                f"model={name} has no version {model_version[:32]!r}; ask for version {VERSION}, or for none",
                field="model_version",
            )
        return model

    def _checked_port(self, model: ModelDescription, call: InferCall) -> ModelPort:
        port = port_of(model, self._plane)
        check_inputs(call, port.inputs)
        known = [spec.name for spec in port.outputs]
        for name in call.outputs:
            if name not in known:
                raise RequestError(
                    f"outputs: {name[:64]!r} is not an output of the model; it gives {known}", field="outputs"
                )
        check_classes(call.classes, port.outputs)
        return port


def server_version() -> str:
    """The version of this software."""
    try:
        return version("rayshard")
    except PackageNotFoundError:
        return "0"


def type_name(port: PortSpec) -> str:
    """A datatype as model configurations call it."""
    return "TYPE_STRING" if port.datatype == BYTES else f"TYPE_{port.datatype}"


def check_inputs(call: InferCall, specs: list[PortSpec]) -> None:
    """Names, datatypes and shapes of a call's inputs, against what the model takes. Raises RequestError."""
    by_name = {spec.name: spec for spec in specs}
    given: set[str] = set()
    for tensor in call.inputs:
        spec = by_name.get(tensor.name)
        where = f"inputs.{tensor.name[:64]}"
        if spec is None:
            raise RequestError(f"{where} is unknown; the model takes {sorted(by_name)}", field="inputs")
        if tensor.name in given:
            raise RequestError(f"{where} is given more than once", field="inputs")
        given.add(tensor.name)
        if tensor.datatype != spec.datatype:
            message = f"{where} has datatype {tensor.datatype[:16]}, the model takes {spec.datatype}"
            raise RequestError(message, field=where)
        fits = len(tensor.shape) == len(spec.shape) and all(
            wanted in (-1, size) for size, wanted in zip(tensor.shape, spec.shape, strict=True)
        )
        if not fits:
            raise RequestError(f"{where} has shape {list(tensor.shape)}, the model takes {spec.shape}", field=where)
        if 0 in tensor.shape:
            raise RequestError(f"{where} is empty: its shape is {list(tensor.shape)}", field=where)
    missing = [spec.name for spec in specs if spec.name not in given]
    if missing:
        raise RequestError(f"inputs.{missing[0]} is missing; the model takes {sorted(by_name)}", field="inputs")


def _requested(outputs: list[NamedTensor], call: InferCall, port: ModelPort) -> list[NamedTensor]:
    if not call.outputs:
        return outputs
    labels = {spec.name: spec.labels for spec in port.outputs}
    by_name = {
        one.name: classified(one, call.classes[one.name], labels[one.name]) if one.name in call.classes else one
        for one in outputs
    }
    return [by_name[name] for name in call.outputs]
