"""The Gateway deployment."""

import asyncio
import contextlib
import logging
import secrets

from starlette.applications import Starlette

from serve_app.backend.serve_backend import ServeBackend
from serve_app.backend.serve_control import ServeControl, own_replica_id, place_here
from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.open_inference import OpenInference
from serve_app.gateway.calls.scrape import gateway_readings
from serve_app.gateway.grpc.methods import GrpcMethods
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.http.browser_guard import hosts_when_bound_to
from serve_app.metrics.ray_export import RayExport
from serve_app.observability import configure_logging
from serve_app.tracing.start import start_tracing
from serve_app.types.draining import RequestsLeft

logger = logging.getLogger(__name__)

_FIRST_LOOK_S = 10.0


class Gateway(GrpcMethods):
    """HTTP and gRPC in front of all models. One application, one route."""

    async def __init__(self, config: GatewayConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        configure_logging()
        logger.info("gateway starting settings=%s", config.model_dump_json())
        control = ServeControl()
        tracing = start_tracing("gateway", own_replica_id(), is_first=True)
        self._backend = ServeBackend(control, place_here, failover=config.failover, tracing=tracing)
        with contextlib.suppress(TimeoutError):  # ready when the models that run are known
            async with asyncio.timeout(_FIRST_LOOK_S):
                await self._backend.find_running_models()
        self._backend.start()
        if config.allowed_hosts is None:
            hosts = hosts_when_bound_to(await control.http_host())
            config = config.model_copy(update={"allowed_hosts": hosts})
            logger.info("requests may name hosts=%s", hosts or "any")
        self._plane = DataPlane(self._backend, config, own_replica_id(), tracing)
        self._exporting = RayExport(lambda: gateway_readings(self._plane)).start()
        self._open_inference = OpenInference(self._plane)
        self._time_limit_s = config.request_timeout_s
        self._keys = self._plane.keys
        self._own_name = secrets.token_hex(8)
        if self._keys is None:
            logger.info("gateway is open to everybody who reaches it: no api_keys_file is set")

    async def drain(self) -> RequestsLeft:
        """Take no request from now on; what is left of those that were taken. Called until none is."""
        self._plane.intake.close()
        return RequestsLeft(self._own_name, self._plane.intake.num_running)

    async def check_health(self) -> None:
        """Serve replaces this replica when it cannot hear its Routers any more."""
        self._backend.check()

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_http_app(self._plane)
