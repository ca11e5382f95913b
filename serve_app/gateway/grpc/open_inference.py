"""The Open Inference Protocol over gRPC: its messages to calls and back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from serve_app.errors import RequestError
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
from serve_app.gateway.calls.open_inference_ports import InferCall
from serve_app.gateway.calls.open_inference_tensors import (
    BYTES,
    DTYPE_OF,
    NamedTensor,
    PortSpec,
    checked_shape,
    element_bytes,
)
from serve_app.gateway.failures import as_rayshard_error, told_message
from serve_app.gateway.grpc.limits import check_size
from serve_app.preprocessing.arrays import NUMPY_DTYPES
from serve_app.protos import open_inference_pb2 as pb

UseKey = Callable[[], AbstractContextManager[object]]

_MAX_CALLS = 64  # of one stream at once
_MAX_WAITING = 1024  # answers of a stream that the client has not read
_FINAL = "triton_final_response"
_WANTS_FINAL = "triton_enable_empty_final_response"
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
}


def server_metadata() -> pb.ServerMetadataResponse:
    """What is served here."""
    return pb.ServerMetadataResponse(name="rayshard", version=server_version(), extensions=EXTENSIONS)


def model_metadata(service: OpenInference, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
    """What a model takes and gives. Raises ModelNotFoundError."""
    found = service.metadata(request.name, request.version)
    return pb.ModelMetadataResponse(
        name=found.name,
        versions=[VERSION],
        platform=PLATFORM,
        inputs=_ports(found.inputs),
        outputs=_ports(found.outputs),
    )


def model_config(service: OpenInference, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
    """A model as Triton's clients know it. Raises ModelNotFoundError."""
    found = service.metadata(request.name, request.version)
    config = pb.ModelConfig(
        name=found.name,
        platform=PLATFORM,
        backend=BACKEND,
        input=[pb.ModelInput(name=one.name, data_type=type_name(one), dims=one.shape) for one in found.inputs],
        output=[pb.ModelOutput(name=one.name, data_type=type_name(one), dims=one.shape) for one in found.outputs],
    )
    return pb.ModelConfigResponse(config=config)


def model_statistics(service: OpenInference, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
    """How often models were called. Raises ModelNotFoundError."""
    shown = []
    for name, counts in service.statistics(request.name, request.version):
        stats = pb.InferStatistics(
            success=pb.StatisticDuration(count=counts.num_good, ns=counts.good_ns),
            fail=pb.StatisticDuration(count=counts.num_failed, ns=counts.failed_ns),
        )
        shown.append(
            pb.ModelStatistics(
                name=name,
                version=VERSION,
                last_inference=counts.last_ms,
                inference_count=counts.num_good,
                inference_stats=stats,
            )
        )
    return pb.ModelStatisticsResponse(model_stats=shown)


def repository_index(service: OpenInference, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
    """The models that there are."""
    models = [
        pb.RepositoryIndexResponse.ModelIndex(name=one.name, version=VERSION, state=one.state)
        for one in service.index(is_ready_only=request.ready)
    ]
    return pb.RepositoryIndexResponse(models=models)


async def infer(service: OpenInference, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """One whole answer. Raises a RayshardError."""
    check_size(request, service.max_request_bytes)
    return _response(await service.infer(_call_of(request)))


async def stream_infer(
    service: OpenInference, requests: AsyncIterator[pb.ModelInferRequest], use_key: UseKey
) -> AsyncIterator[pb.ModelStreamInferResponse]:
    """The answers of all calls of a stream as they come; what is wrong with a call ends that call alone.

    Each call runs inside a `use_key()` of its own.
    """
    answers: asyncio.Queue[pb.ModelStreamInferResponse | None] = asyncio.Queue(_MAX_WAITING)
    running = asyncio.create_task(_run_calls(service, requests, answers, use_key))
    try:
        while (answer := await answers.get()) is not None:
            yield answer
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _run_calls(
    service: OpenInference,
    requests: AsyncIterator[pb.ModelInferRequest],
    answers: "asyncio.Queue[pb.ModelStreamInferResponse | None]",
    use_key: UseKey,
) -> None:
    turn = asyncio.Semaphore(_MAX_CALLS)
    try:
        async with asyncio.TaskGroup() as group:
            async for request in requests:
                await turn.acquire()
                call = group.create_task(_run_call(service, request, answers, use_key))
                call.add_done_callback(lambda _call: turn.release())
    finally:
        await answers.put(None)


async def _run_call(
    service: OpenInference,
    request: pb.ModelInferRequest,
    answers: "asyncio.Queue[pb.ModelStreamInferResponse | None]",
    use_key: UseKey,
) -> None:
    try:
        check_size(request, service.max_request_bytes)
        wants_final = request.parameters[_WANTS_FINAL].bool_param if _WANTS_FINAL in request.parameters else False
        request.parameters.pop(_WANTS_FINAL, None)
        with use_key():
            async for answer in service.stream(_call_of(request)):
                await answers.put(pb.ModelStreamInferResponse(infer_response=_response(answer)))
        if wants_final:
            final = pb.ModelInferResponse(model_name=request.model_name, model_version=VERSION, id=request.id)
            final.parameters[_FINAL].bool_param = True
            await answers.put(pb.ModelStreamInferResponse(infer_response=final))
    except Exception as error:  # here it meets the client
        failed = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        message = told_message(as_rayshard_error(error))
        await answers.put(pb.ModelStreamInferResponse(error_message=message, infer_response=failed))


def _ports(ports: Iterable[PortSpec]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    return [
        pb.ModelMetadataResponse.TensorMetadata(name=port.name, datatype=port.datatype, shape=port.shape)
        for port in ports
    ]


def _call_of(request: pb.ModelInferRequest) -> InferCall:
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise RequestError(
            f"raw_input_contents has {len(raws)} entries for {len(request.inputs)} inputs; send one for each",
            field="raw_input_contents",
        )
    if raws:
        pairs = zip(request.inputs, raws, strict=True)
        inputs = [NamedTensor.of_raw(one.name, one.datatype, list(one.shape), raw) for one, raw in pairs]
    else:
        inputs = [_tensor_of_contents(one) for one in request.inputs]
    for one in request.inputs:
        refuse_shared_memory(f"inputs.{one.name[:64]}", one.parameters)
    names = [one.name for one in request.outputs]
    counts = {one.name: class_count(one.name, _parameters(one.parameters)) for one in request.outputs}
    classes = {name: count for name, count in counts.items() if count is not None}
    parameters = _parameters(request.parameters)
    return InferCall(request.model_name, request.model_version, request.id, inputs, names, parameters, classes)


def _tensor_of_contents(tensor: pb.ModelInferRequest.InferInputTensor) -> NamedTensor:
    where = f"inputs.{tensor.name[:64]}"
    shape = checked_shape(tensor.name, tensor.datatype, list(tensor.shape))
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise RequestError(f"{where}: {tensor.datatype} comes in raw_input_contents only", field=where)
    filled = [descriptor.name for descriptor, _value in tensor.contents.ListFields()]
    if filled not in ([field], []):
        raise RequestError(f"{where} has {filled[0]}, and {tensor.datatype} takes {field}", field=where)
    values = getattr(tensor.contents, field)
    if tensor.datatype == BYTES:
        raw = b"".join(len(text).to_bytes(4, "little") + text for text in values)
        return NamedTensor.of_raw(tensor.name, BYTES, shape, raw)
    dtype = NUMPY_DTYPES[DTYPE_OF[tensor.datatype]]
    wide = np.array(values, dtype={"i": np.int64, "u": np.uint64}.get(dtype.kind, dtype))
    if dtype.kind in "iu" and len(values):
        limits = np.iinfo(DTYPE_OF[tensor.datatype])
        if int(wide.min()) < limits.min or int(wide.max()) > limits.max:
            raise RequestError(f"{where} holds a number outside the range of {tensor.datatype}", field=where)
    assert element_bytes(tensor.datatype) == dtype.itemsize
    return NamedTensor.of_raw(tensor.name, tensor.datatype, shape, wide.astype(dtype).tobytes())


def _parameters(given: Mapping[str, pb.InferParameter]) -> dict[str, bool | int | float | str]:
    parameters: dict[str, Any] = {}
    for name, parameter in given.items():
        chosen = parameter.WhichOneof("parameter_choice")
        if chosen is None:
            raise RequestError(f"parameters.{name[:64]} has no value", field="parameters")
        parameters[name] = getattr(parameter, chosen)
    return parameters


def _response(answer: InferAnswer) -> pb.ModelInferResponse:
    return pb.ModelInferResponse(
        model_name=answer.model,
        model_version=VERSION,
        id=answer.call_id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(name=one.name, datatype=one.datatype, shape=one.shape)
            for one in answer.outputs
        ],
        raw_output_contents=[one.raw() for one in answer.outputs],
    )
