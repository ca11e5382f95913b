"""Spans of what this process asks of others, whose own spans hang below them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from opentelemetry.trace import SpanKind

from serve_app.backend.token_stream import TokenStream
from serve_app.tracing.attributes import FINISH_REASONS, OUTPUT_TOKENS, generation_attributes, request_attributes
from serve_app.tracing.tracing import Tracing, carried
from serve_app.types.chains import ChainRequest
from serve_app.types.generation import Completion, GenerateRequest
from serve_app.types.graphs import GraphRequest
from serve_app.types.tensors import InferRequest

RequestT = TypeVar("RequestT", InferRequest, ChainRequest, GraphRequest)


@dataclass(slots=True)
class TracedGeneration:
    """A generation under way."""

    request: GenerateRequest  # takes the trace along
    completion: Completion | None = None  # when it has ended by itself


@contextmanager
def generating(
    tracing: Tracing, model: str, request: GenerateRequest, stream: TokenStream
) -> Iterator[TracedGeneration]:
    """While a model generates, on whichever copies. Named as GenAI's conventions say: operation and model."""
    attributes = generation_attributes(model, request)
    with tracing.part(f"text_completion {model}", attributes, SpanKind.CLIENT) as span:
        call = TracedGeneration(replace(request, trace=carried()))
        try:
            yield call
        finally:
            span.set_attribute(OUTPUT_TOKENS, stream.num_tokens)
            if call.completion is not None:
                span.set_attribute(FINISH_REASONS, list(call.completion.finish_reasons))


@contextmanager
def part_of(tracing: Tracing | None, work: str, model: str, request: RequestT) -> Iterator[RequestT]:
    """While another process works on a request; gives it as it is to be sent."""
    if tracing is None:
        yield request
        return
    attributes = request_attributes(model, request.request_id, _num_entries(request))
    with tracing.part(f"{work} {model}", attributes, SpanKind.CLIENT):
        yield replace(request, trace=carried())


def _num_entries(request: InferRequest | ChainRequest | GraphRequest) -> int:
    if isinstance(request, InferRequest):
        return len(request.items)
    return len(request.values if isinstance(request, ChainRequest) else request.inputs)
