"""What is noted of a request while it runs, to be counted when it has ended."""

import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from serve_app.errors import InternalError, RayshardError, RequestAbortedError
from serve_app.gateway.request_span import RequestSpan
from serve_app.metrics.of_gateway import GatewayMetrics

OK = 200
OTHER_ROUTE = "other"  # whatever a client has asked for that is not there


@dataclass(slots=True)
class RequestNotes:
    """Of one request, shared by all of its tasks."""

    arrived_s: float = field(default_factory=time.perf_counter)
    model: str = ""  # one that is served; "": none was found
    has_run: bool = False  # the model has answered to the end
    num_prompt_tokens: int = 0  # that have gone into the model
    error: RayshardError | None = None  # that the client was told


NOTES: ContextVar[RequestNotes | None] = ContextVar("notes", default=None)


def note_model(model: str) -> None:
    """The request is for this model, which is served."""
    notes = NOTES.get()
    if notes is not None:
        notes.model = model


def note_run(num_prompt_tokens: int = 0) -> None:
    """The model has answered to the end, after so many tokens."""
    notes = NOTES.get()
    if notes is not None:
        notes.has_run = True
        notes.num_prompt_tokens += num_prompt_tokens


def note_error(error: RayshardError) -> None:
    """The client is told of an error."""
    notes = NOTES.get()
    if notes is not None:
        notes.error = error


def arrival_s() -> float:
    """When the request came, by time.perf_counter; now, where nothing is noted."""
    notes = NOTES.get()
    return time.perf_counter() if notes is None else notes.arrived_s


@contextmanager
def counted(
    metrics: GatewayMetrics,
    route: str | Callable[[], str],
    status: Callable[[], int] = lambda: OK,
    span: RequestSpan | None = None,
    uncounted: Set[int] = frozenset(),
) -> Iterator[None]:
    """Note what this task does inside, and count it in the end. status: as the client was told where nothing failed.

    span: of the request, which ends here; None: it is not traced. uncounted: statuses of what will be tried again here.
    """
    notes = RequestNotes()
    NOTES.set(notes)  # of this request's task alone
    try:
        yield
    except BaseException as error:
        notes.error = notes.error or _told(error)
        raise
    finally:
        name = route if isinstance(route, str) else route()
        told = status() if notes.error is None else notes.error.http_status
        if told not in uncounted:
            _count(metrics, name, notes, told)
        if span is not None:
            known = None if name == OTHER_ROUTE else name
            span.end(known, notes.model, notes.num_prompt_tokens, told, notes.error)


def _count(metrics: GatewayMetrics, route: str, notes: RequestNotes, status: int) -> None:
    metrics.count_request(route, notes.model, status, notes.error)
    if notes.has_run and notes.error is None:
        metrics.add_latency(route, notes.model, time.perf_counter() - notes.arrived_s)
    if notes.num_prompt_tokens:
        metrics.add_prompt_tokens(notes.model, notes.num_prompt_tokens)


def _told(error: BaseException) -> RayshardError:
    """What a client is told of an error that ends its request; one that is cancelled has left."""
    if isinstance(error, RayshardError):
        return error
    return InternalError("see the log") if isinstance(error, Exception) else RequestAbortedError("the client left")
