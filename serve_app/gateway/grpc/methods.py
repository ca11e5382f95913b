"""The gRPC methods of a Gateway replica, by the names that Serve's proxy looks for: the last part of their paths."""

from collections.abc import AsyncIterator

from serve_app.gateway.failures import as_rayshard_error
from serve_app.gateway.grpc.calls import CallContext, fail_stream
from serve_app.gateway.grpc.health import HealthMethods
from serve_app.gateway.grpc.open_inference import (
    infer,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
    stream_infer,
)
from serve_app.gateway.grpc.rayshard import chat, classify, embed, generate, predict
from serve_app.protos import open_inference_pb2 as pb
from serve_app.protos import rayshard_pb2 as rayshard_pb


class GrpcMethods(HealthMethods):
    """The methods; the Gateway deployment inherits them."""

    async def ServerLive(self, _request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """Whether this replica answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Whether every model can answer."""
        return pb.ServerReadyResponse(ready=self._open_inference.is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, grpc_context: CallContext) -> pb.ModelReadyResponse:
        """Whether a copy of a model can answer."""

        async def look() -> pb.ModelReadyResponse:
            return pb.ModelReadyResponse(ready=self._open_inference.is_model_ready(request.name, request.version))

        return await self._answered(look, pb.ModelReadyResponse(), grpc_context, is_probe=True)

    async def ServerMetadata(self, _request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """What is served here."""
        return server_metadata()

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, grpc_context: CallContext
    ) -> pb.ModelMetadataResponse:
        """What a model takes and gives."""

        async def look() -> pb.ModelMetadataResponse:
            return model_metadata(self._open_inference, request)

        return await self._answered(look, pb.ModelMetadataResponse(), grpc_context)

    async def ModelConfig(self, request: pb.ModelConfigRequest, grpc_context: CallContext) -> pb.ModelConfigResponse:
        """A model as Triton's clients know it."""

        async def look() -> pb.ModelConfigResponse:
            return model_config(self._open_inference, request)

        return await self._answered(look, pb.ModelConfigResponse(), grpc_context)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, grpc_context: CallContext
    ) -> pb.ModelStatisticsResponse:
        """How often models were called."""

        async def look() -> pb.ModelStatisticsResponse:
            return model_statistics(self._open_inference, request)

        return await self._answered(look, pb.ModelStatisticsResponse(), grpc_context)

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, grpc_context: CallContext
    ) -> pb.RepositoryIndexResponse:
        """The models that there are."""

        async def look() -> pb.RepositoryIndexResponse:
            return repository_index(self._open_inference, request)

        return await self._answered(look, pb.RepositoryIndexResponse(), grpc_context)

    async def ModelInfer(self, request: pb.ModelInferRequest, grpc_context: CallContext) -> pb.ModelInferResponse:
        """One whole answer."""

        async def run() -> pb.ModelInferResponse:
            return await infer(self._open_inference, request)

        return await self._answered(run, pb.ModelInferResponse(), grpc_context)

    async def ModelStreamInfer(
        self, request_stream: AsyncIterator[pb.ModelInferRequest], grpc_context: CallContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """The answers of any number of calls, as they come. Each call uses the API key as if it had come alone."""
        failure = None
        try:
            self._plane.intake.check()
            with self._plane.infer_streams.held(self._caller_of(grpc_context)):
                answers = stream_infer(
                    self._open_inference, request_stream, lambda: self._taken("ModelStreamInfer", grpc_context)
                )
                try:
                    async for answer in answers:
                        yield answer
                finally:
                    await answers.aclose()  # type: ignore[attr-defined]  # it is a generator
        except Exception as error:  # here it meets the client
            failure = as_rayshard_error(error)
        fail_stream(grpc_context, failure)

    async def Generate(
        self, request: rayshard_pb.GenerateRequest, grpc_context: CallContext
    ) -> AsyncIterator[rayshard_pb.GenerateResponse]:
        """A text's continuation, as it is made."""
        async for piece in self._streamed(
            "Generate", lambda limit_s: generate(self._plane, request, limit_s), grpc_context
        ):
            yield piece

    async def Chat(
        self, request: rayshard_pb.ChatRequest, grpc_context: CallContext
    ) -> AsyncIterator[rayshard_pb.GenerateResponse]:
        """A conversation's answer, as it is made."""
        async for piece in self._streamed("Chat", lambda limit_s: chat(self._plane, request, limit_s), grpc_context):
            yield piece

    async def Embed(self, request: rayshard_pb.EmbedRequest, grpc_context: CallContext) -> rayshard_pb.EmbedResponse:
        """Vectors of texts."""
        return await self._answered(lambda: embed(self._plane, request), rayshard_pb.EmbedResponse(), grpc_context)

    async def Classify(
        self, request: rayshard_pb.ClassifyRequest, grpc_context: CallContext
    ) -> rayshard_pb.ClassifyResponse:
        """Labels of texts."""
        empty = rayshard_pb.ClassifyResponse()
        return await self._answered(lambda: classify(self._plane, request), empty, grpc_context)

    async def Predict(
        self, request: rayshard_pb.PredictRequest, grpc_context: CallContext
    ) -> rayshard_pb.PredictResponse:
        """What a module makes of named tensors."""
        empty = rayshard_pb.PredictResponse()
        return await self._answered(lambda: predict(self._plane, request), empty, grpc_context)
