"""rayshard.v1 over gRPC: its messages to the bodies of our other routes, and answers back."""

from collections.abc import AsyncIterator

from google.protobuf.message import Message

from serve_app.errors import RequestError
from serve_app.gateway.bodies.convert import convert_body
from serve_app.gateway.bodies.inference import ClassifyBody, EmbeddingsBody, TokenUsage
from serve_app.gateway.bodies.openai import ChatBody, CompletionBody
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.generation import GenerationCall, stream_call
from serve_app.gateway.calls.open_inference import check_inputs
from serve_app.gateway.calls.open_inference_ports import InferCall, Parameters, TensorPort
from serve_app.gateway.calls.open_inference_tensors import DATATYPE_OF, NamedTensor
from serve_app.gateway.grpc.limits import check_size
from serve_app.protos import rayshard_pb2 as pb
from serve_app.types.models import ModelDescription


async def generate(
    plane: DataPlane, request: pb.GenerateRequest, limit_s: float | None
) -> AsyncIterator[pb.GenerateResponse]:
    """A text's continuation in pieces. Raises a RayshardError."""
    check_size(request, plane.config.max_request_bytes)
    if request.WhichOneof("prompt") is None:
        raise RequestError("prompt is missing; send text or token_ids", field="prompt")
    prompt = request.text if request.WhichOneof("prompt") == "text" else list(request.token_ids.ids)
    body = convert_body({**_sampling(request.sampling), **_model(request.model), "prompt": prompt}, CompletionBody)
    call = await plane.reader.completion(body, await plane.models.find(body.model))
    async for piece in _pieces(plane, call, limit_s):
        yield piece


async def chat(plane: DataPlane, request: pb.ChatRequest, limit_s: float | None) -> AsyncIterator[pb.GenerateResponse]:
    """A conversation's answer in pieces. Raises a RayshardError."""
    check_size(request, plane.config.max_request_bytes)
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    body = convert_body({**_sampling(request.sampling), **_model(request.model), "messages": messages}, ChatBody)
    call = await plane.reader.chat(body, await plane.models.find(body.model))
    async for piece in _pieces(plane, call, limit_s):
        yield piece


async def embed(plane: DataPlane, request: pb.EmbedRequest) -> pb.EmbedResponse:
    """One vector for each text. Raises a RayshardError."""
    check_size(request, plane.config.max_request_bytes)
    given = {
        **_given(request, "dimensions", "truncate", "priority"),
        **_model(request.model),
        "input": list(request.texts),
    }
    await plane.models.meet(request.model or None)
    answer = await plane.calls.embed(convert_body(given, EmbeddingsBody))
    embeddings = [pb.Embedding(values=one.embedding) for one in answer.data if not isinstance(one.embedding, str)]
    return pb.EmbedResponse(embeddings=embeddings, usage=_usage(answer.usage))


async def classify(plane: DataPlane, request: pb.ClassifyRequest) -> pb.ClassifyResponse:
    """The labels of each text. Raises a RayshardError."""
    check_size(request, plane.config.max_request_bytes)
    settings = _given(request, "top_k", "threshold", "truncate", "priority")
    given = {**settings, **_model(request.model), "input": list(request.texts)}
    await plane.models.meet(request.model or None)
    answer = await plane.calls.classify(convert_body(given, ClassifyBody))
    classifications = [
        pb.Classification(
            label=one.label or "",
            labels=[pb.LabelScore(label=label.label, score=label.score) for label in one.labels],
        )
        for one in answer.data
    ]
    return pb.ClassifyResponse(classifications=classifications, usage=_usage(answer.usage))


async def predict(plane: DataPlane, request: pb.PredictRequest) -> pb.PredictResponse:
    """What a module makes of named tensors. Raises a RayshardError."""
    check_size(request, plane.config.max_request_bytes)
    await plane.models.meet(request.model or None)
    model = plane.models.for_tasks(request.model or None, ("predict", "classify", "embed"))
    inputs = [
        NamedTensor.of_raw(name, DATATYPE_OF.get(tensor.dtype, tensor.dtype), list(tensor.shape), tensor.data)
        for name, tensor in request.inputs.items()
    ]
    parameters = {"priority": request.priority} if request.HasField("priority") else {}
    outputs = await _run_tensors(plane, model, inputs, parameters)
    if isinstance(outputs, str):
        return pb.PredictResponse(json=outputs)
    return pb.PredictResponse(
        outputs={one.name: pb.Tensor(dtype=one.to_data().dtype, shape=one.shape, data=one.data) for one in outputs}
    )


async def _run_tensors(
    plane: DataPlane, model: ModelDescription, inputs: list[NamedTensor], parameters: Parameters
) -> list[NamedTensor] | str:
    port = TensorPort(model, plane)
    call = InferCall(model.name, "", "", inputs, parameters=parameters)
    check_inputs(call, port.inputs)
    outputs = await port.run(call)
    if model.task == "predict" and model.postprocessing_gives is not None:
        return outputs[0].texts[0].decode()
    return outputs


async def _pieces(plane: DataPlane, call: GenerationCall, limit_s: float | None) -> AsyncIterator[pb.GenerateResponse]:
    runs = call.runs()
    async for deltas in stream_call(call, runs, plane.backend, limit_s):
        for _prompt, delta in deltas:
            yield pb.GenerateResponse(
                choice=delta.choice,
                text=delta.text,
                token_ids=delta.token_ids,
                finish_reason=delta.finish_reason or "",
            )
    num_prompt = sum(len(run.request.prompt_token_ids) for run in runs)
    num_output = sum(run.num_output_tokens for run in runs)
    num_cached = sum(run.num_cached_tokens for run in runs)
    usage = pb.Usage(prompt_tokens=num_prompt, completion_tokens=num_output, cached_prompt_tokens=num_cached)
    yield pb.GenerateResponse(usage=usage)


def _model(name: str) -> dict[str, str]:
    return {"model": name} if name else {}


def _sampling(params: pb.SamplingParams) -> dict[str, object]:
    """What is set, under the names of the HTTP bodies."""
    given = _all_given(params, {"stop": list(params.stop), "stop_token_ids": list(params.stop_token_ids)})
    if params.HasField("structured_outputs"):
        held = params.structured_outputs
        given["structured_outputs"] = _all_given(held, {"choice": list(held.choice)})
    return given


def _all_given(message: Message, repeated: dict[str, list[str] | list[int]]) -> dict[str, object]:
    single = [field.name for field in message.DESCRIPTOR.fields if field.name not in repeated]
    return {**_given(message, *single), **{name: values for name, values in repeated.items() if values}}


def _given(message: Message, *names: str) -> dict[str, object]:
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def _usage(usage: TokenUsage) -> pb.Usage:
    return pb.Usage(prompt_tokens=usage.prompt_tokens)
