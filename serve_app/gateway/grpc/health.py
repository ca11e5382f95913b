"""Health as load balancers ask for it: grpc.health.v1."""

import asyncio
from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2

from serve_app.errors import ModelNotFoundError, UnavailableError
from serve_app.gateway.failures import as_rayshard_error
from serve_app.gateway.grpc.calls import CallContext, GrpcCalls, authorizations_of, fail_stream, peer_of

_SERVICES = ("", "inference.GRPCInferenceService", "rayshard.v1.Rayshard")  # healthy when everything is
_WATCH_S = 0.5


class HealthMethods(GrpcCalls):
    """The methods of grpc.health.v1.Health."""

    async def Check(
        self, request: health_pb2.HealthCheckRequest, grpc_context: CallContext
    ) -> health_pb2.HealthCheckResponse:
        """Health as load balancers ask for it (grpc.health.v1): of everything, or of one model by its name."""

        async def look() -> health_pb2.HealthCheckResponse:
            return self._health(request.service)

        if request.service in _SERVICES:
            return await look()
        return await self._answered(look, health_pb2.HealthCheckResponse(), grpc_context, is_probe=True)

    async def List(
        self, _request: health_pb2.HealthListRequest, grpc_context: CallContext
    ) -> health_pb2.HealthListResponse:
        """Health of everything, and of each model that the caller's key may see; without a key of no model."""

        async def look() -> health_pb2.HealthListResponse:
            names = [model.name for model in self._plane.models.all()]
            return health_pb2.HealthListResponse(statuses={name: self._health(name) for name in (*_SERVICES, *names)})

        if self._keys is not None and not authorizations_of(grpc_context):
            return health_pb2.HealthListResponse(statuses={name: self._health(name) for name in _SERVICES})
        return await self._answered(look, health_pb2.HealthListResponse(), grpc_context, is_probe=True)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, grpc_context: CallContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Health now, and whenever it changes; of a name that is not served, until it is."""
        failure, told = None, None
        is_open = request.service in _SERVICES and not authorizations_of(grpc_context)
        try:
            with self._plane.watches.held(peer_of(grpc_context) if is_open else self._caller_of(grpc_context)):
                while True:
                    if not is_open:
                        self._caller_of(grpc_context)  # its key may have been taken away
                    health = self._watched_health(request.service)
                    if health != told:
                        told = health
                        yield health
                    await asyncio.sleep(_WATCH_S)
        except asyncio.CancelledError:
            return  # the client has left; raised on, Serve would log it with a traceback
        except Exception as error:  # here it meets the client
            failure = as_rayshard_error(error)
        fail_stream(grpc_context, failure)

    def _watched_health(self, service: str) -> health_pb2.HealthCheckResponse:
        try:
            return self._health(service)
        except (ModelNotFoundError, UnavailableError):
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)

    def _health(self, service: str) -> health_pb2.HealthCheckResponse:
        """Raises ModelNotFoundError, and UnavailableError while models are still looked for."""
        is_whole = service in _SERVICES
        is_ready = self._open_inference.is_ready() if is_whole else self._open_inference.is_model_ready(service, "")
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if is_ready else status.NOT_SERVING)
