"""What the HTTP side asks of the rest: the models there are, a stream of tokens for each request, and health."""

from dataclasses import dataclass, field
from typing import Protocol, Self

from serve_app.types.chains import ChainRequest, ChainResult
from serve_app.types.generation import GenerateRequest, OutputChunk
from serve_app.types.graphs import GraphRequest, GraphResult
from serve_app.types.models import CopyState, ModelDescription
from serve_app.types.tensors import InferRequest, InferResult


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Whether every model can answer, and the state of each of its copies."""

    is_healthy: bool
    models: dict[str, list[CopyState]] = field(default_factory=dict)
    detail: str = ""
    is_discovering: bool = False  # an application has not told its model's name yet


class GenerationStream(Protocol):
    """Tokens of one request as they come: an asynchronous iterator, read by one task.

    Each item is everything that has arrived since the last one. Ends after the last choice's finish_reason; raises a
    RayshardError when the request cannot go on.
    """

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> list[OutputChunk]: ...

    async def aclose(self) -> None:
        """Abort the sequence unless it has ended. May be called more than once."""
        ...


class GatewayBackend(Protocol):
    """The models behind a Gateway."""

    def models(self) -> list[ModelDescription]:
        """All models served now. Called for each request: must be cheap."""
        ...

    def open(self, model: str, request: GenerateRequest) -> GenerationStream:
        """Start a request on a model of `models()`. Must not block; refusals come from the stream."""
        ...

    async def infer(self, request: InferRequest) -> InferResult:
        """Run entries on a model of `models()`, spread over its copies; cancelling gives them up.

        Raises a RayshardError. A copy that dies meanwhile is no error while there is another one.
        """
        ...

    async def run_chain(self, request: ChainRequest) -> ChainResult:
        """Run values through the steps before or behind a model that has some. Raises a RayshardError."""
        ...

    async def run_graph(self, request: GraphRequest) -> GraphResult:
        """Run texts through a graph of `models()`; cancelling gives it up. Raises a RayshardError."""
        ...

    def health(self) -> HealthReport:
        """Health of all models. Must not block."""
        ...
