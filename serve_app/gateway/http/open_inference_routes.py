"""The Open Inference Protocol over HTTP: JSON, and the extension that sends tensors as bytes after it.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.errors import RayshardError, RequestError
from serve_app.gateway.bodies.convert import parse_body
from serve_app.gateway.bodies.json_body import parse_json_object
from serve_app.gateway.bodies.open_inference import (
    ConfiguredPort,
    CountedTime,
    IndexBody,
    IndexEntry,
    InferBody,
    InferStats,
    ModelStats,
    ServerLive,
    ServerReady,
    ShownAnswer,
    ShownConfig,
    ShownModel,
    ShownPort,
    ShownServer,
    ShownStats,
    ShownTensor,
    TensorBody,
)
from serve_app.gateway.calls.open_inference import (
    BACKEND,
    EXTENSIONS,
    PLATFORM,
    VERSION,
    InferAnswer,
    OpenInference,
    server_version,
    type_name,
)
from serve_app.gateway.calls.open_inference_classes import class_count, refuse_shared_memory
from serve_app.gateway.calls.open_inference_counts import CallCounts
from serve_app.gateway.calls.open_inference_ports import InferCall
from serve_app.gateway.calls.open_inference_tensors import BYTES, DTYPE_OF, NamedTensor, PortSpec, checked_shape
from serve_app.gateway.calls.tensor_inputs import flatten, tensor_of, write_output
from serve_app.gateway.http.errors import on_protocol_error
from serve_app.gateway.http.shell import RequestShell, json_answer, json_bytes
from serve_app.types.tensors import TensorData

JSON_LENGTH = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class _Binary:
    """Which outputs a client wants as bytes."""

    is_default: bool
    by_name: Mapping[str, bool]

    def holds(self, name: str) -> bool:
        return self.by_name.get(name, self.is_default)


def open_inference_routes(service: OpenInference, shell: RequestShell) -> list[Route]:
    """The protocol's paths."""
    endpoints = _ProtocolEndpoints(service, shell)
    model = "/v2/models/{name:path}"
    version = f"{model}/versions/{{version}}"
    return [
        Route("/v2", _answered(endpoints.server)),
        Route("/v2/health/live", _answered(endpoints.live)),
        Route("/v2/health/ready", _answered(endpoints.ready)),
        *(Route(f"{path}/infer", _answered(endpoints.infer), methods=["POST"]) for path in (version, model)),
        Route("/v2/models/stats", _answered(endpoints.stats)),
        Route("/v2/repository/index", _answered(endpoints.index), methods=["POST"]),
        *(Route(f"{path}/config", _answered(endpoints.config)) for path in (version, model)),
        *(Route(f"{path}/stats", _answered(endpoints.stats)) for path in (version, model)),
        *(Route(f"{path}/ready", _answered(endpoints.model_ready)) for path in (version, model)),
        *(Route(path, _answered(endpoints.model)) for path in (version, model)),
    ]


class _ProtocolEndpoints:
    def __init__(self, service: OpenInference, shell: RequestShell) -> None:
        self._service = service
        self._shell = shell

    async def server(self, _request: Request) -> Response:
        return json_answer(ShownServer("rayshard", server_version(), list(EXTENSIONS)))

    async def live(self, _request: Request) -> Response:
        return json_answer(ServerLive(True))

    async def ready(self, _request: Request) -> Response:
        is_ready = self._service.is_ready()
        return json_answer(ServerReady(is_ready), status=200 if is_ready else 503)

    async def model_ready(self, request: Request) -> Response:
        is_ready = self._service.is_model_ready(*_model_of(request))
        return json_answer(ServerReady(is_ready), status=200 if is_ready else 503)

    async def model(self, request: Request) -> Response:
        found = self._service.metadata(*_model_of(request))
        inputs, outputs = (_shown_ports(ports) for ports in (found.inputs, found.outputs))
        return json_answer(ShownModel(found.name, [VERSION], PLATFORM, inputs, outputs))

    async def config(self, request: Request) -> Response:
        found = self._service.metadata(*_model_of(request))
        inputs, outputs = (_configured_ports(ports) for ports in (found.inputs, found.outputs))
        return json_answer(ShownConfig(found.name, PLATFORM, BACKEND, 0, inputs, outputs))

    async def stats(self, request: Request) -> Response:
        found = self._service.statistics(request.path_params.get("name", ""), request.path_params.get("version", ""))
        return json_answer(ShownStats([_shown_stats(name, counts) for name, counts in found]))

    async def index(self, request: Request) -> Response:
        content = await self._shell.read(request)
        body = parse_body(content, IndexBody) if content.strip() else IndexBody()
        found = self._service.index(is_ready_only=body.ready is True)
        return json_bytes(msgspec.json.encode([IndexEntry(one.name, VERSION, one.state) for one in found]))

    async def infer(self, request: Request) -> Response:
        content = await self._shell.read(request)
        body, binary = _split(content, request.headers.get(JSON_LENGTH))
        parsed = _parsed(body)
        name, version = _model_of(request)
        call, wants = _call_of(parsed, binary, name, version)
        return _response(await self._shell.run(request, self._service.infer(call)), wants)


def _answered(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint with errors in the protocol's shape: `{"error": message}`."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RayshardError as error:
            return await on_protocol_error(request, error)

    return answer


def _model_of(request: Request) -> tuple[str, str]:
    return request.path_params["name"], request.path_params.get("version", "")


def _shown_ports(ports: list[PortSpec]) -> list[ShownPort]:
    return [ShownPort(port.name, port.datatype, port.shape) for port in ports]


def _configured_ports(ports: list[PortSpec]) -> list[ConfiguredPort]:
    return [ConfiguredPort(port.name, type_name(port), port.shape) for port in ports]


def _shown_stats(name: str, counts: CallCounts) -> ModelStats:
    good, failed = CountedTime(counts.num_good, counts.good_ns), CountedTime(counts.num_failed, counts.failed_ns)
    return ModelStats(name, VERSION, counts.last_ms, counts.num_good, InferStats(good, failed))


def _split(content: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    """The JSON and the bytes after it."""
    if json_length is None:
        return content, b""
    if not (json_length.isascii() and json_length.isdecimal()) or int(json_length[:20]) > len(content):
        raise RequestError(
            f"the header {JSON_LENGTH} is not a length within the body of {len(content)} bytes", field=JSON_LENGTH
        )
    return content[: int(json_length)], content[int(json_length) :]


def _parsed(content: bytes) -> InferBody:
    raw = parse_json_object(content)
    try:
        return msgspec.convert(raw, InferBody)
    except msgspec.ValidationError as error:
        reason, _, location = str(error).partition(" - at `")
        path = location.rstrip("`").removeprefix("$").removeprefix(".") or "body"
        raise RequestError(f"{path}: {reason.replace('`', '')}", field=path) from None


def _call_of(body: InferBody, binary: bytes, name: str, version: str) -> tuple[InferCall, _Binary]:
    parameters = dict(body.parameters)
    is_default = parameters.pop("binary_data_output", False) is True
    wants, classes = {}, {}
    for output in body.outputs:
        wants[output.name] = output.parameters.pop("binary_data", is_default) is True
        count = class_count(output.name, output.parameters)
        if count is not None:
            classes[output.name] = count
    inputs, position = [], 0
    for tensor in body.inputs:
        size = tensor.parameters.get("binary_data_size")
        where = f"inputs.{tensor.name[:64]}"
        refuse_shared_memory(where, tensor.parameters)
        if size is None:
            inputs.append(_tensor_of_json(tensor))
            continue
        if type(size) is not int or not 0 <= size <= len(binary) - position:
            message = f"{where}: binary_data_size is not a size within the {len(binary)} bytes after the JSON"
            raise RequestError(message, field=where)
        raw = binary[position : position + size]
        inputs.append(NamedTensor.of_raw(tensor.name, tensor.datatype, tensor.shape, raw))
        position += size
    if position != len(binary):
        raise RequestError(f"{len(binary) - position} bytes after the JSON belong to no input", field="inputs")
    names = [output.name for output in body.outputs]
    return InferCall(name, version, body.id, inputs, names, parameters, classes), _Binary(is_default, wants)


def _tensor_of_json(tensor: TensorBody) -> NamedTensor:
    where = f"inputs.{tensor.name[:64]}"
    shape = checked_shape(tensor.name, tensor.datatype, tensor.shape)
    if not isinstance(tensor.data, list):
        raise RequestError(f"{where}.data is not a list of elements", field=where)
    elements = flatten(where, tensor.data, shape)
    if tensor.datatype != BYTES:
        data = tensor_of(where, elements, shape, DTYPE_OF[tensor.datatype])
        return NamedTensor(tensor.name, tensor.datatype, shape, data=data.data)
    for index, element in enumerate(elements):
        if not isinstance(element, str):
            raise RequestError(f"{where}: element {index} is not a text", field=where)
    return NamedTensor(tensor.name, BYTES, shape, texts=tuple(element.encode() for element in elements))


def _response(answer: InferAnswer, wants: _Binary) -> Response:
    shown, pieces = [], []
    for tensor in answer.outputs:
        one = ShownTensor(tensor.name, tensor.datatype, list(tensor.shape))
        if wants.holds(tensor.name):
            raw = tensor.raw()
            pieces.append(raw)
            one.parameters = {"binary_data_size": len(raw)}
        elif tensor.datatype == BYTES:
            one.data = [text.decode() for text in tensor.texts]
        else:
            one.data = write_output(TensorData(DTYPE_OF[tensor.datatype], tensor.shape, tensor.data))
        shown.append(one)
    body = ShownAnswer(answer.model, VERSION, shown, answer.call_id, dict(answer.parameters))
    encoded = msgspec.json.encode(body)
    if not pieces:
        return Response(encoded, media_type="application/json")
    headers = {JSON_LENGTH: str(len(encoded))}
    return Response(b"".join([encoded, *pieces]), headers=headers, media_type="application/octet-stream")
