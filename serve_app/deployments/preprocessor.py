"""The Preprocessor deployment: the steps before and behind an application's models, on CPUs, scaled by itself."""

import asyncio
import logging
from pathlib import Path

from ray import serve
from ray.util import get_node_ip_address

from serve_app.checkpoints.module_files import labels_of
from serve_app.checkpoints.source import local_directory, pin_source
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.deployments.call_server import STATE_INTERVAL_S, CallServer, GatewayLinks
from serve_app.errors import InternalError
from serve_app.observability import configure_logging
from serve_app.preprocessing.chain_host import ChainHost, ChainSpec
from serve_app.types.chains import ChainRequest, ChainResult
from serve_app.types.links import LinkAddress
from serve_app.types.models import CopyState
from serve_app.wire.links import CallReceiver, TokenLinks
from serve_app.wire.messages import PROTOCOL_VERSION, Call, ChainMessage, ChainReply, Reply

logger = logging.getLogger(__name__)


class Preprocessor:
    """Takes values over the call link, or by Serve calls of other deployments."""

    async def __init__(self, models: list[ModelConfig]) -> None:  # type: ignore[misc]  # Serve awaits it
        configure_logging()
        self._host = await asyncio.to_thread(_host_of, models)
        context = serve.get_replica_context()
        node = str(get_node_ip_address())
        self._state = CopyState(context.replica_tag, "ready", "", 0, 0, 0, 0)
        self._links = TokenLinks(context.replica_tag, node)
        receiver = CallReceiver(node)
        self._gateways = GatewayLinks(self._links, context.app_name, "Preprocessor", receiver)
        self._server = CallServer(receiver, self._links, self._answer)
        self._tasks = [asyncio.create_task(work) for work in (self._server.run(), self._report_state())]
        logger.info("preprocessor ready models=%s", ",".join(model.name for model in models))

    async def run_chain(self, request: ChainRequest) -> ChainResult:
        """What the steps before or behind a model make of each value."""
        return await self._host.run(request)

    async def register(self, gateway: LinkAddress) -> None:
        """Tell a Gateway replica this replica's state from now on."""
        self._gateways.register(gateway, 0, self._state)

    async def hold(self, seconds: float) -> None:
        """Stay open so long: Serve's autoscaling counts these in place of calls on the call link."""
        await asyncio.sleep(seconds)

    async def check_health(self) -> None:
        """Serve replaces this replica when it cannot hear any more."""
        if any(task.done() for task in self._tasks):
            raise InternalError("a task of the Preprocessor has ended; see the log")

    async def _answer(self, message: Call) -> Reply:
        if not isinstance(message, ChainMessage):
            raise InternalError(f"a Preprocessor takes no {type(message).__name__}")
        return ChainReply(PROTOCOL_VERSION, 0, message.stream, await self.run_chain(message.request))

    async def _report_state(self) -> None:
        while True:
            await asyncio.sleep(STATE_INTERVAL_S)
            self._gateways.send_states(0, self._state, self._server.keys_in_use)


def _host_of(models: list[ModelConfig]) -> ChainHost:
    environment = read_environment()
    specs = []
    for model in models:
        source = pin_source(model.source, model.revision, Path.cwd(), environment)
        directory = local_directory(source, environment, needs_weights=False)
        specs.append(ChainSpec(model, directory, labels_of(directory)))
    return ChainHost(specs)
