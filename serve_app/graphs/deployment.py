"""The Graph deployment: joins models of other applications, without passing through the Gateway again."""

import asyncio
import logging
import time

from serve_app.config.graph import GraphConfig
from serve_app.errors import ConfigError, InternalError, RayshardError, UnavailableError
from serve_app.graphs.check import check_graph, port_of_description, result_kind
from serve_app.graphs.model_steps import ModelSteps
from serve_app.graphs.models import ServedModels
from serve_app.graphs.runner import GraphRunner
from serve_app.observability import configure_logging
from serve_app.preprocessing.chat_template import ChatTemplateRenderer
from serve_app.preprocessing.text_pool import TextPool
from serve_app.types.graphs import GraphRequest, GraphResult
from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription

logger = logging.getLogger(__name__)

_NUM_THREADS = 2
_MAX_WAITING = 4096
_START_LOOK_S = 1.0  # between looks for the models while some are missing
_LOOK_S = 5.0
_REPORT_S = 30.0


class Graph:
    """Takes texts by Serve calls; on CPUs, scaled by itself. Ready when all of its models have described themselves."""

    async def __init__(self, config: GraphConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        configure_logging()
        self._config = config
        self._created_s = int(time.time())
        self._unfit = ""  # why the models that are served now do not fit
        self._models = ServedModels(config.models)
        logger.info("graph starting settings=%s", config.model_dump_json())
        pool = TextPool(_NUM_THREADS, max_waiting=_MAX_WAITING, name="graph")
        renderer = ChatTemplateRenderer() if any(step.is_chat for step in config.steps) else None
        steps = ModelSteps(self._models, pool, renderer)
        self._runner = await asyncio.to_thread(GraphRunner, config, steps, pool)
        await self._find_models()
        problems = self._check()
        if problems:
            raise ConfigError("\n".join(problems))
        self._looking = asyncio.create_task(self._look_forever())
        logger.info("graph ready name=%s", config.name)

    async def run(self, request: GraphRequest) -> GraphResult:
        """What the graph makes of texts. Cancelling this call gives it up."""
        if self._unfit:
            raise UnavailableError(f"the graph cannot run: {self._unfit}", retry_after_s=5.0)
        kind = ""
        try:
            return await self._runner.run(request)
        except RayshardError:
            raise
        except Exception as error:  # its message may quote the request: the kind alone is logged and told
            kind = type(error).__name__
        logger.error("graph failed error=%s", kind)
        raise InternalError(f"the request failed: {kind}")

    async def register(self, _gateway: LinkAddress) -> list[ModelDescription]:
        """Describe the graph to a Gateway replica."""
        return await self.describe()

    async def describe(self) -> list[ModelDescription]:
        """The graph as a Gateway calls it."""
        ports = {name: port_of_description(model) for name, model in self._models.descriptions.items()}
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

    async def check_health(self) -> None:
        """Serve replaces this replica when it cannot look, or hear, any more."""
        if self._looking.done() or not self._models.is_alive:
            raise InternalError("a task of the Graph has ended; see the log")

    async def _find_models(self) -> None:
        """Return when all models have described themselves; they may still be loading."""
        started_s = reported_s = time.monotonic()
        while True:
            await self._look()
            missing, now_s = self._models.missing, time.monotonic()
            if not missing:
                return
            if now_s - reported_s > _REPORT_S:
                reported_s = now_s
                logger.info("graph waits for models=%s waited_s=%.0f", ",".join(missing), now_s - started_s)
            await asyncio.sleep(_START_LOOK_S)

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(_START_LOOK_S if self._models.missing else _LOOK_S)
            await self._look()
            problems = [] if self._models.missing else self._check()
            if problems and not self._unfit:
                logger.error("graph does not fit its models any more: %s", "; ".join(problems))
            self._unfit = "; ".join(problems)

    async def _look(self) -> None:
        try:
            await self._models.refresh()
        except Exception as error:  # Serve's controller may be restarting: look again
            logger.warning("looking for models failed error=%s", type(error).__name__)

    def _check(self) -> list[str]:
        ports = {name: port_of_description(model) for name, model in self._models.descriptions.items()}
        return check_graph(self._config, ports)
