"""The span of one request at the Gateway, from its arrival to the end of its answer."""

from collections.abc import Iterable

from opentelemetry.trace import Span, Status, StatusCode

from serve_app.errors import RayshardError
from serve_app.tracing import attributes as names
from serve_app.tracing.tracing import Carrier, Tracing, work_on

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_OTHER_METHOD = "_OTHER"  # what the convention has for what a client has made up
_CONTEXT_HEADERS = ("traceparent", "tracestate")
_FAULTS = 500  # statuses from here on are errors of the server's, and of its span
_OPERATIONS = {  # by route, or gRPC method
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/batch": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v2/chat": "chat",
    "/v2/embed": "embeddings",
    "/api/chat": "chat",
    "/api/generate": "text_completion",
    "/api/embed": "embeddings",
    "rayshard.v1.Rayshard/Chat": "chat",
    "rayshard.v1.Rayshard/Generate": "text_completion",
    "rayshard.v1.Rayshard/Embed": "embeddings",
}


class RequestSpan:
    """Begun when a request has come; what its task does from then on is part of it."""

    def __init__(self, span: Span, prefix: str, rpc: str | None = None) -> None:
        """prefix: of an HTTP request's name; rpc: the whole name of a gRPC method, in place of prefix and route."""
        self._span = span
        self._prefix = prefix
        self._rpc = rpc
        work_on(span)

    @staticmethod
    def of_http(tracing: Tracing, method: str, headers: Iterable[tuple[bytes, bytes]]) -> "RequestSpan":
        """Of an HTTP request; its route is known when it ends."""
        known = method if method in _METHODS else _OTHER_METHOD
        prefix = "HTTP" if known == _OTHER_METHOD else known
        pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
        return RequestSpan(tracing.begin(prefix, _carrier(pairs), {names.HTTP_METHOD: known}), prefix)

    @staticmethod
    def of_grpc(tracing: Tracing, rpc: str, metadata: Iterable[tuple[str, str]]) -> "RequestSpan":
        """Of a gRPC call. rpc: service and method."""
        attributes = {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: rpc}
        return RequestSpan(tracing.begin(rpc, _carrier(metadata), attributes), "", rpc)

    def end(
        self, route: str | None, model: str, num_prompt_tokens: int, status: int, error: RayshardError | None
    ) -> None:
        """The answer has ended. route: a template, None where none fits; model: one that is served, or ""."""
        span, target = self._span, self._rpc or route
        if self._rpc is not None:
            span.set_attribute(names.RPC_STATUS, "OK" if error is None else error.grpc_code)
        else:
            span.set_attribute(names.HTTP_STATUS, status)
        if self._rpc is None and route is not None:
            span.set_attribute(names.HTTP_ROUTE, route)
            span.update_name(f"{self._prefix} {route}")
        if target in _OPERATIONS:
            span.set_attribute(names.OPERATION, _OPERATIONS[target])
        if model:
            span.set_attributes({names.REQUEST_MODEL: model, names.PROVIDER: names.OURS})
        if num_prompt_tokens:
            span.set_attribute(names.INPUT_TOKENS, num_prompt_tokens)
        if error is not None:
            span.set_attribute(names.ERROR_TYPE, type(error).__name__)
            if error.http_status >= _FAULTS:
                span.set_status(Status(StatusCode.ERROR))
        span.end()


def _carrier(pairs: Iterable[tuple[str, str]]) -> Carrier:
    """The trace context of a request. A header that comes twice is joined; a `traceparent` is none then."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in _CONTEXT_HEADERS:
            found[name] = f"{found[name]},{value}" if name in found else value
    return found
