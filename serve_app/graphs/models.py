"""The models of other applications, as a graph reaches them: found through Serve, called by its handles."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.checkpoints.source import local_directory
from serve_app.config.environment import read_environment
from serve_app.errors import InternalError, QueueFullError, RayshardError, UnavailableError
from serve_app.graphs.text_generation import TextGeneration
from serve_app.types.chains import ChainRequest, ChainResult
from serve_app.types.generation import GenerateRequest
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import InferRequest, InferResult

logger = logging.getLogger(__name__)

_ROUTER, _PREPROCESSOR = "Router", "Preprocessor"
_SERVE_TIMEOUT_S = 20.0
_MAX_ATTEMPTS = 3  # of what gives the same answer however often it is run

ResultT = TypeVar("ResultT")


class ServedModels:
    """The ModelCaller of a Serve replica."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._generation = TextGeneration()
        self._applications: dict[str, str] = {}  # model -> application
        self.descriptions: dict[str, ModelDescription] = {}

    @property
    def is_alive(self) -> bool:
        """Whether generated text would still arrive."""
        return self._generation.is_alive

    @property
    def missing(self) -> list[str]:
        """The models that no application has described."""
        return [name for name in self._names if name not in self.descriptions]

    async def refresh(self) -> None:
        """Look what serves the models now. One whose copies are all away keeps its description."""
        status = await asyncio.to_thread(serve.status)
        running = [name for name, found in status.applications.items() if _ROUTER in found.deployments]
        self._applications = {model: name for model, name in self._applications.items() if name in running}
        self.descriptions = {name: self.descriptions[name] for name in self._applications}
        told = await asyncio.gather(*(_describe(name) for name in running))
        for application, models in zip(running, told, strict=True):
            for model in models:
                if model.name in self._names:
                    await self._take(application, model)

    def describe(self, model: str) -> ModelDescription:
        """What a model takes and gives. Raises UnavailableError."""
        description = self.descriptions.get(model)
        if description is None:
            raise UnavailableError(f"model={model}, which the graph calls, is not served now", retry_after_s=5.0)
        return description

    async def infer(self, request: InferRequest) -> InferResult:
        """Run entries on a model; a copy that dies meanwhile costs a second try."""
        router = self._handle(request.model, _ROUTER)
        return await _with_retries(lambda: router.infer.remote(request))

    async def run_chain(self, request: ChainRequest) -> ChainResult:
        """Run values through the steps before or behind a model."""
        preprocessor = self._handle(request.model, _PREPROCESSOR)
        return await _with_retries(lambda: preprocessor.run_chain.remote(request))

    async def generate(self, model: str, request: GenerateRequest) -> list[int]:
        """The token ids of a request's one choice."""
        try:
            return await self._generation.generate(self._handle(model, _ROUTER), request)
        except (RayError, RayServeException) as error:
            failure = _error_of(error)
            if isinstance(failure, _CopyLostError):  # half an answer cannot be continued by another copy
                failure = UnavailableError(failure.message, retry_after_s=1.0)
            raise failure from None

    def _handle(self, model: str, deployment: str) -> DeploymentHandle:
        self.describe(model)
        return serve.get_deployment_handle(deployment, self._applications[model])

    async def _take(self, application: str, model: ModelDescription) -> None:
        known = self.descriptions.get(model.name)
        is_same = known is not None and known.created_s == model.created_s
        if is_same and self._applications.get(model.name) == application:
            return
        if model.source is not None:  # this node may have the files elsewhere
            directory = await asyncio.to_thread(local_directory, model.source, read_environment(), needs_weights=False)
            model = replace(model, source_dir=str(directory))
        self._applications[model.name] = application
        self.descriptions[model.name] = model


async def _describe(application: str) -> list[ModelDescription]:
    """What the oldest replica that can be reached says; nothing when none can be."""
    try:
        router = serve.get_deployment_handle(_ROUTER, application)
        async with asyncio.timeout(_SERVE_TIMEOUT_S):
            answers = await router.broadcast("describe").results_async(return_exceptions=True)
    except (RayError, RayServeException, DeploymentUnavailableError, TimeoutError):
        logger.debug("no replica answered application=%s", application)
        return []
    told: list[list[ModelDescription]] = [answer for answer in answers if isinstance(answer, list) and answer]
    return min(told, key=lambda models: models[0].created_s, default=[])


async def _with_retries(start: Callable[[], Awaitable[ResultT]]) -> ResultT:
    for _attempt in range(_MAX_ATTEMPTS):
        response = start()
        try:
            return await response
        except asyncio.CancelledError:
            if hasattr(response, "cancel"):
                response.cancel()
            raise
        except (RayError, RayServeException) as error:
            failure = _error_of(error)
            if not isinstance(failure, _CopyLostError):
                raise failure from None
    raise UnavailableError(f"{_MAX_ATTEMPTS} copies have died while they ran the request", retry_after_s=1.0)


class _CopyLostError(UnavailableError):
    """The replica that had the call has died."""


def _error_of(error: Exception) -> RayshardError:
    """A RayshardError for whatever ended a Serve call; another exception is told by its kind, as it may quote."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RayshardError):
        return cause
    if isinstance(cause, BackPressureError):
        return QueueFullError("too many requests are waiting for a model of the graph", retry_after_s=1.0)
    if isinstance(cause, DeploymentUnavailableError):
        return UnavailableError("a model of the graph is not available; see /health", retry_after_s=5.0)
    if isinstance(cause, RayError) and not isinstance(cause, RayTaskError):
        return _CopyLostError("the copy of the model that ran the request has died; try again", retry_after_s=1.0)
    logger.error("call of a model failed error=%s", type(cause).__name__)
    return InternalError(f"the request failed: {type(cause).__name__}")
