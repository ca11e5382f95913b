"""The client's gRPC carrier: rayshard.v1."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from serve_app.client.calls import (
    Arrays,
    CallOptions,
    Classification,
    Piece,
    Sampling,
    error_of_code,
)
from serve_app.errors import InternalError, RayshardError, RequestError
from serve_app.protos import rayshard_pb2 as pb
from serve_app.protos import rayshard_pb2_grpc as services

_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class GrpcCarrier:
    """Calls over gRPC; `address` is host:port. To be made and used on one event loop."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_UNLIMITED)
        self._stub: Any = services.RayshardStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    async def generate(
        self, model: str | None, prompt: str | Sequence[int], sampling: Sampling, options: CallOptions
    ) -> AsyncIterator[Piece]:
        """Pieces of a text's continuation."""
        request = pb.GenerateRequest(model=model or "", sampling=_message(pb.SamplingParams, sampling))
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.token_ids.ids.extend(prompt)
        async for piece in self._stream(self._stub.Generate, request, options):
            yield piece

    async def chat(
        self, model: str | None, messages: Sequence[Mapping[str, str]], sampling: Sampling, options: CallOptions
    ) -> AsyncIterator[Piece]:
        """Pieces of a conversation's answer."""
        request = pb.ChatRequest(model=model or "", sampling=_message(pb.SamplingParams, sampling))
        request.messages.extend(_message(pb.Message, message) for message in messages)
        async for piece in self._stream(self._stub.Chat, request, options):
            yield piece

    async def embed(
        self, model: str | None, texts: Sequence[str], settings: Sampling, options: CallOptions
    ) -> NDArray[np.float32]:
        """Vectors [N, D]."""
        request = _message(pb.EmbedRequest, {**settings, "model": model or "", "texts": list(texts)})
        answer = await self._call(self._stub.Embed, request, options)
        return np.array([one.values for one in answer.embeddings], np.float32)

    async def classify(
        self, model: str | None, texts: Sequence[str], settings: Sampling, options: CallOptions
    ) -> list[Classification]:
        """Labels of each text."""
        request = _message(pb.ClassifyRequest, {**settings, "model": model or "", "texts": list(texts)})
        answer = await self._call(self._stub.Classify, request, options)
        return [
            Classification(one.label or None, {label.label: label.score for label in one.labels})
            for one in answer.classifications
        ]

    async def predict(self, model: str, inputs: Arrays, options: CallOptions) -> dict[str, NDArray[np.generic]]:
        """A module's outputs."""
        request = pb.PredictRequest(model=model)
        for name, array in inputs.items():
            raw = np.ascontiguousarray(array).tobytes()
            request.inputs[name].CopyFrom(pb.Tensor(dtype=array.dtype.name, shape=array.shape, data=raw))
        answer = await self._call(self._stub.Predict, request, options)
        if answer.json:
            raise InternalError("the model answers JSON; use /predict")
        return {name: _array_of(tensor) for name, tensor in answer.outputs.items()}

    async def close(self) -> None:
        """Close connections."""
        await self._channel.close()

    async def _call(self, method: Any, request: Any, options: CallOptions) -> Any:
        try:
            return await method(request, metadata=_metadata(options), timeout=options.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _error_of(error) from error

    async def _stream(self, method: Any, request: Any, options: CallOptions) -> AsyncIterator[Piece]:
        is_ended = False
        call = method(request, metadata=_metadata(options), timeout=options.timeout_s)
        try:
            async for piece in call:
                if piece.HasField("usage"):
                    is_ended = True
                else:
                    yield Piece(piece.text, piece.choice, piece.finish_reason or None)
        except grpc.aio.AioRpcError as error:
            raise _error_of(error) from error
        finally:
            call.cancel()  # no effect on one that has ended
        if not is_ended:
            raise InternalError("the stream ended before the answer did")


def _message(kind: Any, values: Mapping[str, object]) -> Any:
    """A message of settings. Raises RequestError for one that it has not."""
    try:
        return kind(**{name: value for name, value in values.items() if value is not None})
    except (TypeError, ValueError) as error:
        raise RequestError(f"a setting cannot be sent over gRPC: {error}") from error


def _metadata(options: CallOptions) -> list[tuple[str, str]]:
    return list(options.headers().items())


def _error_of(error: grpc.aio.AioRpcError) -> RayshardError:
    delay_ms = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms", "")
    retry_after_s = int(delay_ms) / 1000 if isinstance(delay_ms, str) and delay_ms.isdecimal() else None
    return error_of_code(error.code().name, error.details() or error.code().name, retry_after_s)


def _array_of(tensor: Any) -> NDArray[np.generic]:
    if tensor.dtype == "bfloat16":  # numpy has none: the upper half of a float32
        return (np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape)
    return np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)
