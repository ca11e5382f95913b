"""The Preprocessor deployment: the steps before and after an application's models, on CPUs, scaled by itself."""

import asyncio
import logging
from pathlib import Path

from serve_app.checkpoints.module_files import labels_of
from serve_app.checkpoints.sentence_modules import transformer_directory
from serve_app.checkpoints.source import local_directory, pin_source
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.deployments.replica_links import ReplicaIdentity, ReplicaLinks
from serve_app.deployments.serve_replica import ServeReplica, own_identity
from serve_app.deployments.start_failure import told_failure
from serve_app.errors import InternalError
from serve_app.observability import configure_logging
from serve_app.preprocessing.chain_host import ChainHost, ChainSpec
from serve_app.tracing.attributes import request_attributes
from serve_app.tracing.start import start_tracing
from serve_app.tracing.tracing import Tracing, serving
from serve_app.types.models import CopyState, ModelDescription
from serve_app.wire.links import Senders
from serve_app.wire.messages import PROTOCOL_VERSION, Call, ChainMessage, ChainReply, Reply

logger = logging.getLogger(__name__)


class Preprocessor(ServeReplica):
    """Runs values through chains."""

    async def __init__(self, models: list[ModelConfig]) -> None:  # type: ignore[misc]  # Serve awaits it
        configure_logging()
        with told_failure(",".join(model.name for model in models)):
            host = await asyncio.to_thread(_host_of, models)
        identity = own_identity("Preprocessor")
        self.service = ChainService(identity, host, start_tracing("preprocessor", identity.replica_id))
        self.service.links.start()
        logger.info("preprocessor ready models=%s", ",".join(model.name for model in models))


class ChainService:
    """A Preprocessor without Serve."""

    def __init__(self, identity: ReplicaIdentity, host: ChainHost, tracing: Tracing | None = None) -> None:
        state = CopyState(identity.replica_id, "ready", "", 0, 0, 0, 0)
        self.links = ReplicaLinks(identity, Senders(identity.node), self._answer, lambda: state)
        self._host = host
        self._tracing = tracing

    def describe(self) -> list[ModelDescription]:
        """The models are the Router's to describe."""
        return []

    def check(self) -> None:
        """Raises InternalError when it does not hear any more."""
        self.links.check()

    async def close(self) -> None:
        """Let the calls at hand end."""
        await self.links.drain()
        self.links.close()
        self._host.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _answer(self, call: Call) -> Reply:
        if not isinstance(call, ChainMessage):
            raise InternalError(f"a Preprocessor takes no {type(call).__name__}")
        request = call.request
        attributes = request_attributes(request.model, request.request_id, len(request.values))
        with serving(self._tracing, "preprocess", request.trace, attributes):
            return ChainReply(PROTOCOL_VERSION, 0, call.stream, await self._host.run(request))


def _host_of(models: list[ModelConfig]) -> ChainHost:
    environment = read_environment()
    specs = []
    for model in models:
        source = pin_source(model.source, model.revision, Path.cwd(), environment)
        directory = transformer_directory(local_directory(source, environment, needs_weights=False))
        specs.append(ChainSpec(model, directory, labels_of(directory)))
    return ChainHost(specs)
