"""The Graph deployment: joins models of other applications, without passing through the Gateway again."""

import asyncio
import logging
import time

from serve_app.backend.serve_backend import ServeBackend
from serve_app.backend.serve_control import ServeControl, place_here
from serve_app.backend.text_models import TextModels
from serve_app.config.graph import GraphConfig
from serve_app.deployments.replica_links import ReplicaIdentity, ReplicaLinks
from serve_app.deployments.serve_replica import ServeReplica, own_identity
from serve_app.deployments.start_failure import told_failure
from serve_app.errors import ConfigError, InternalError, UnavailableError
from serve_app.graphs.check import check_graph, port_of_description, result_kind
from serve_app.graphs.model_steps import ModelSteps
from serve_app.graphs.runner import GraphRunner
from serve_app.observability import configure_logging
from serve_app.preprocessing.chat_template import ChatTemplateRenderer
from serve_app.preprocessing.text_pool import TextPool
from serve_app.tracing.attributes import request_attributes
from serve_app.tracing.start import start_tracing
from serve_app.tracing.tracing import Tracing, serving
from serve_app.types.models import CopyState, ModelDescription
from serve_app.wire.links import Senders
from serve_app.wire.messages import PROTOCOL_VERSION, Call, GraphMessage, GraphReply, Reply

logger = logging.getLogger(__name__)

_NUM_THREADS = 2
_MAX_WAITING = 4096
_LOOK_S = 1.0
_REPORT_S = 30.0


class Graph(ServeReplica):
    """On CPUs, scaled by itself. Ready when all of its models have described themselves."""

    async def __init__(self, config: GraphConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        configure_logging()
        logger.info("graph starting settings=%s", config.model_dump_json())
        pool = TextPool(_NUM_THREADS, max_waiting=_MAX_WAITING, name="graph")
        identity = own_identity("Graph")
        tracing = start_tracing("graph", identity.replica_id)
        backend = ServeBackend(ServeControl(), place_here, has_graphs=False, tracing=tracing)
        service = GraphService(identity, config, backend, pool, tracing)
        with told_failure(config.name):
            await service.start()
        self.service = service
        logger.info("graph ready name=%s", config.name)


class GraphService:
    """A Graph without Serve."""

    def __init__(
        self,
        identity: ReplicaIdentity,
        config: GraphConfig,
        backend: ServeBackend,
        pool: TextPool,
        tracing: Tracing | None = None,
    ) -> None:
        self._config = config
        self._tracing = tracing
        self._backend = backend
        self._created_s = int(time.time())
        self._unfit = ""  # why the models that are served now do not fit
        self._renderer = renderer = ChatTemplateRenderer() if any(step.is_chat for step in config.steps) else None
        self._runner = GraphRunner(config, ModelSteps(TextModels(backend, pool, tracing), pool, renderer), pool)
        self._looking: asyncio.Task[None] | None = None
        state = CopyState(identity.replica_id, "ready", "", 0, 0, 0, 0)
        self.links = ReplicaLinks(identity, Senders(identity.node), self._answer, lambda: state)

    async def start(self) -> None:
        """Return when all models have described themselves; they may still be loading. Raises ConfigError."""
        await self._backend.find_running_models()
        self._backend.start()
        started_s = reported_s = time.monotonic()
        while missing := self._missing():
            now_s = time.monotonic()
            if now_s - reported_s > _REPORT_S:
                reported_s = now_s
                logger.info("graph waits for models=%s waited_s=%.0f", ",".join(missing), now_s - started_s)
            await asyncio.sleep(_LOOK_S)
        problems = self._problems()
        if problems:
            raise ConfigError("\n".join(problems))
        self._looking = asyncio.create_task(self._look_forever())
        self.links.start()

    def describe(self) -> list[ModelDescription]:
        """The graph as a Gateway calls it."""
        ports = {name: port_of_description(model) for name, model in self._models().items()}
        if len(ports) < len(self._config.models):
            return []
        description = ModelDescription(
            name=self._config.name,
            task="graph",
            source_dir="",
            max_model_len=0,
            max_request_tokens=0,
            vocab_size=0,
            eos_token_ids=[],
            created_s=self._created_s,
            has_tokenizer=False,
            graph_gives=result_kind(self._config, ports),
        )
        return [description]

    def check(self) -> None:
        """Raises InternalError when it cannot look, or hear, any more."""
        self.links.check()
        self._backend.check()
        if self._looking is not None and self._looking.done():
            raise InternalError("a task of the Graph has ended; see the log")

    async def close(self) -> None:
        """Let the calls at hand end."""
        await self.links.drain()
        if self._looking is not None:
            self._looking.cancel()
        self.links.close()
        self._backend.close()
        if self._renderer is not None:
            self._renderer.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _answer(self, call: Call) -> Reply:
        if not isinstance(call, GraphMessage):
            raise InternalError(f"a Graph takes no {type(call).__name__}")
        if self._unfit:
            raise UnavailableError(f"the graph cannot run: {self._unfit}", retry_after_s=5.0)
        request = call.request
        attributes = request_attributes(request.graph, request.request_id, len(request.inputs))
        with serving(self._tracing, "graph", request.trace, attributes):
            return GraphReply(PROTOCOL_VERSION, 0, call.stream, await self._runner.run(request))

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            problems = [] if self._missing() else self._problems()
            if problems and not self._unfit:
                logger.error("graph does not fit its models any more: %s", "; ".join(problems))
            self._unfit = "; ".join(problems)

    def _models(self) -> dict[str, ModelDescription]:
        found = ((name, self._backend.model(name)) for name in self._config.models)
        return {name: model for name, model in found if model is not None}

    def _missing(self) -> list[str]:
        return [name for name in self._config.models if self._backend.model(name) is None]

    def _problems(self) -> list[str]:
        return check_graph(self._config, {name: port_of_description(model) for name, model in self._models().items()})
