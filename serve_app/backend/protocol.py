"""What a Gateway and a Graph ask of the models: which there are, tokens and outputs for each request, and health."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from serve_app.types.chains import ChainRequest, ChainResult
from serve_app.types.generation import GenerateRequest, OutputChunk
from serve_app.types.graphs import GraphRequest, GraphResult
from serve_app.types.models import CopyState, ModelDescription
from serve_app.types.plans import CopyAccount
from serve_app.types.tensors import InferRequest, InferResult

TakeChunk = Callable[[OutputChunk], bool]  # False: no more is wanted


@dataclass(frozen=True, slots=True)
class Newcomer:
    """An application that has never run: its first deploy is under way, or has failed."""

    state: Literal["starting", "waiting", "failed"]  # waiting: Ray has no place for it
    detail: str  # what Serve says of it, or why there is no place and the way out


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Whether every model that has run can answer, and the state of each of its copies."""

    is_healthy: bool
    models: dict[str, list[CopyState]] = field(default_factory=dict)
    detail: str = ""
    is_discovering: bool = False  # an application has not told its model's name yet
    newcomers: dict[str, Newcomer] = field(default_factory=dict)  # by application; they make nothing unhealthy
    asleep: list[str] = field(default_factory=list)  # models without a copy, by design: the next request starts one
    num_resumes: dict[str, int] = field(default_factory=dict)  # by model: generations that went on after a loss
    num_choices: dict[str, dict[str, int]] = field(default_factory=dict)  # by model and reason: of one copy of several
    num_call_bytes: int = 0  # sent to all copies


class ModelBackend(Protocol):
    """The models that can be called."""

    def models(self) -> list[ModelDescription]:
        """All models served now. Must be cheap."""
        ...

    def model(self, name: str) -> ModelDescription | None:
        """The model of this name; None when it is not served. Called for each request: must be cheap."""
        ...

    async def wait_for_model(self, name: str, limit_s: float) -> None:
        """Return when `model` knows the name, when none is on its way that may have it, or after so long.

        At once, then, where all are known. Whoever waits shares the looks that are taken anyway.
        """
        ...

    async def generate(self, model: str, request: GenerateRequest, take: TakeChunk) -> None:
        """Hand a request's chunks to `take` as they come; returns when all choices have ended, or no more is wanted.

        Cancelling aborts the request. Raises a RayshardError when it cannot go on, and what `take` raises. When a copy
        dies, another goes on behind the last chunk.
        """
        ...

    async def infer(self, request: InferRequest) -> InferResult:
        """Run entries on a model of `models()`, spread over its copies; cancelling gives them up.

        Raises a RayshardError. A copy that dies meanwhile is no error while there is another one.
        """
        ...

    async def run_chain(self, request: ChainRequest) -> ChainResult:
        """Run values through the steps before or after a model that has some. Raises a RayshardError."""
        ...

    async def run_graph(self, request: GraphRequest) -> GraphResult:
        """Run texts through a graph of `models()`; cancelling gives it up. Raises a RayshardError."""
        ...

    async def accounts(self) -> list[CopyAccount]:
        """What each copy was to take and do, and what it takes and does; a copy that does not answer is left out."""
        ...

    def health(self) -> HealthReport:
        """Health of all models. Must not block."""
        ...
