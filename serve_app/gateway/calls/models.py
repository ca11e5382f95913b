"""The models a Gateway serves, each with its tokenizer."""

import asyncio
import logging
from dataclasses import dataclass

from serve_app.backend.protocol import GatewayBackend
from serve_app.errors import ConfigError, InternalError, ModelNotFoundError, RequestError, UnavailableError
from serve_app.gateway.caller import visible
from serve_app.preprocessing.text_pool import TextPool
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.models import ModelDescription

logger = logging.getLogger(__name__)

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

    @property
    def max_context_tokens(self) -> int:
        """Prompt and output together."""
        return min(self.description.max_model_len, self.description.max_request_tokens)


class ServedModels:
    """Finds models by name; a tokenizer is read once, when its model is first asked for."""

    def __init__(self, backend: GatewayBackend, pool: TextPool) -> None:
        self._backend = backend
        self._pool = pool
        self._tokenizers: dict[tuple[str, str, int], Tokenizer] = {}  # by name, directory, creation
        self._loading = asyncio.Lock()

    def all(self) -> list[ModelDescription]:
        """Those that are there for the caller."""
        return visible(self._backend.models())

    def describe(self, name: str) -> ModelDescription:
        """Raises ModelNotFoundError."""
        descriptions = self.all()
        for description in descriptions:
            if description.name == name:
                return description
        if self._backend.health().is_discovering:
            raise UnavailableError(
                f"model={name[:100]!r} is not known yet: some models are still starting; try again", retry_after_s=1.0
            )
        raise _not_found(name, descriptions)

    async def find(self, name: str | None) -> ServedModel:
        """The model that generates text under this name; None will do when there is only one."""
        return await self.with_tokenizer(self.for_tasks(name, ("generate",)))

    def for_tasks(self, name: str | None, tasks: tuple[str, ...]) -> ModelDescription:
        """The model of this name that does one of these tasks; None will do when there is only one that does."""
        if name is None:
            fitting = [description for description in self.all() if description.task in tasks]
            if len(fitting) != 1:
                names = [description.name for description in fitting]
                raise RequestError(f"model is missing; send one of {names[:16]}", field="model")
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
        found = [one for one in self.all() if one.name == name and one.graph_gives is not None]
        return found[0] if found else None

    async def with_tokenizer(self, description: ModelDescription) -> ServedModel:
        """The model, ready to take text. Raises RequestError when it takes none."""
        if not description.has_tokenizer:
            raise RequestError(
                f"model={description.name} takes tensors, not text; send `inputs` to /predict", field="model"
            )
        return ServedModel(description, await self._tokenizer(description))

    async def _tokenizer(self, description: ModelDescription) -> Tokenizer:
        key = (description.name, description.source_dir, description.created_s)
        if key not in self._tokenizers:
            async with self._loading:
                if key not in self._tokenizers:
                    self._tokenizers[key] = await self._load(description)
                    self._forget_old_models(key)
        return self._tokenizers[key]

    async def _load(self, description: ModelDescription) -> Tokenizer:
        try:
            return await self._pool.run(Tokenizer.load, description.source_dir)
        except ConfigError as error:
            logger.error("tokenizer not loaded model=%s reason=%s", description.name, error.message)
            raise InternalError(f"model={description.name}: its tokenizer cannot be read; see the log") from error

    def _forget_old_models(self, newest: tuple[str, str, int]) -> None:
        current = {(model.name, model.source_dir, model.created_s) for model in self._backend.models()} | {newest}
        self._tokenizers = {key: tokenizer for key, tokenizer in self._tokenizers.items() if key in current}


def _not_found(name: str, descriptions: list[ModelDescription]) -> ModelNotFoundError:
    names = [description.name for description in descriptions]
    return ModelNotFoundError(f"model={name[:100]!r} is not served; use one of {names[:16]}", field="model")
