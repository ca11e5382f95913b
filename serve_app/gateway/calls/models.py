"""The models a Gateway serves, each with its tokenizer."""

import logging
import time
from dataclasses import dataclass

from serve_app.backend.text_models import TextModels
from serve_app.errors import ConfigError, InternalError, ModelNotFoundError, RequestError, UnavailableError
from serve_app.gateway.caller import may_see, visible
from serve_app.gateway.request_notes import note_model
from serve_app.gateway.time_limits import note_wait, wait_limit_s
from serve_app.metrics.of_gateway import GatewayMetrics
from serve_app.metrics.tokens import TokenMeters
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.models import ModelDescription

logger = logging.getLogger(__name__)

_MEET_S = 2.0  # a model that has just begun to run is known here after a second

_ROUTES = {
    "generate": "/v1/completions",
    "embed": "/v1/embeddings",
    "classify": "/v1/classify",
    "score": "/v1/score",
    "predict": "/predict",
    "graph": "/predict",
}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model, ready to take text."""

    description: ModelDescription
    tokenizer: Tokenizer
    meters: TokenMeters

    @property
    def max_context_tokens(self) -> int:
        """Prompt and output together."""
        return min(self.description.max_model_len, self.description.max_request_tokens)


class ServedModels:
    """Finds models by name, as the caller may see them."""

    def __init__(
        self, text_models: TextModels, metrics: GatewayMetrics, request_timeout_s: float | None = None
    ) -> None:
        """request_timeout_s: the most that any request may take, waiting for its model included; None: any."""
        self._request_timeout_s = request_timeout_s
        self._backend = text_models.backend
        self._metrics = metrics
        self._text_models = text_models

    def all(self) -> list[ModelDescription]:
        """Those that are there for the caller."""
        return visible(self._backend.models())

    def describe(self, name: str) -> ModelDescription:
        """Raises ModelNotFoundError."""
        description = self._visible(name)
        if description is not None:
            return description
        if self._backend.health().is_discovering:
            raise UnavailableError(
                f"model={name[:100]!r} is not known yet: some models are still starting; try again", retry_after_s=1.0
            )
        raise _not_found(name, self.all())

    async def meet(self, name: object) -> None:
        """Wait, for a while of the request's time, for a model that may be about to be known under this name.

        Returns at once where there is such a model, where none is on its way, and of what is not the name of one.
        """
        if not isinstance(name, str) or not may_see(name) or self._backend.model(name) is not None:
            return
        began_s = time.monotonic()
        await self._backend.wait_for_model(name, wait_limit_s(_MEET_S, self._request_timeout_s))
        note_wait(time.monotonic() - began_s)

    async def find(self, name: str | None) -> ServedModel:
        """The model that generates text under this name; None will do when there is only one."""
        await self.meet(name)
        return await self.with_tokenizer(self.for_tasks(name, ("generate",)))

    async def find_text_model(self, name: str | None) -> ServedModel:
        """Any model that takes text; without a name the one that generates, or the only one."""
        await self.meet(name)
        has_generator = any(description.task == "generate" for description in self.all())
        tasks = ("generate",) if name is None and has_generator else ("generate", "embed", "classify", "score")
        return await self.with_tokenizer(self.for_tasks(name, tasks))

    def for_tasks(self, name: str | None, tasks: tuple[str, ...]) -> ModelDescription:
        """The model of this name that does one of these tasks; None will do when there is only one that does."""
        if name is None:
            fitting = [description for description in self.all() if description.task in tasks]
            if len(fitting) != 1:
                names = [description.name for description in fitting]
                raise RequestError(f"model is missing; send one of {names[:16]}", field="model")
            note_model(fitting[0].name)
            return fitting[0]
        description = self.describe(name)
        if description.task not in tasks:
            wanted = "text generation" if tasks == ("generate",) else " or ".join(tasks)
            raise RequestError(
                f"model={name} serves {description.task}, not {wanted}; use {_ROUTES[description.task]}", field="model"
            )
        return description

    def graph(self, name: str | None) -> ModelDescription | None:
        """The graph of this name; None when it is a model's, or nobody's."""
        found = None if name is None else self._visible(name)
        return found if found is not None and found.graph_gives is not None else None

    async def with_tokenizer(self, description: ModelDescription) -> ServedModel:
        """The model, ready to take text. Raises RequestError when it takes none."""
        if not description.has_tokenizer:
            raise RequestError(
                f"model={description.name} takes tensors, not text; send `inputs` to /predict", field="model"
            )
        meters = self._metrics.tokens_of(description.name)
        return ServedModel(description, await self._tokenizer(description), meters)

    def _visible(self, name: str) -> ModelDescription | None:
        found = self._backend.model(name) if may_see(name) else None
        if found is not None:
            note_model(found.name)
        return found

    async def _tokenizer(self, description: ModelDescription) -> Tokenizer:
        try:
            return await self._text_models.tokenizer(description)
        except ConfigError as error:
            logger.error("tokenizer not loaded model=%s reason=%s", description.name, error.message)
            raise InternalError(f"model={description.name}: its tokenizer cannot be read; see the log") from error


def _not_found(name: str, descriptions: list[ModelDescription]) -> ModelNotFoundError:
    names = [description.name for description in descriptions]
    return ModelNotFoundError(f"model={name[:100]!r} is not served; use one of {names[:16]}", field="model")
