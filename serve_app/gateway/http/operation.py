"""One method of one path, as the OpenAPI document describes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from serve_app.gateway.http.aliases import is_protocol_path
from serve_app.gateway.http.anthropic_errors import MessagesError, is_messages_path
from serve_app.gateway.http.errors import ErrorBody, ProtocolError
from serve_app.gateway.http.vllm_errors import VLLM_PATHS, VllmError

JSON, TEXT, EVENTS, LINES, BYTES, HTML = (
    "application/json",
    "text/plain",
    "text/event-stream",
    "application/x-ndjson",
    "application/octet-stream",
    "text/html",
)
_WORK_ERRORS = {
    400: "The request is wrong; the message names the field.",
    403: "The host, or the page that sends it, is not allowed.",
    404: "No such model, for this key.",
    408: "The body did not arrive within body_timeout_s.",
    413: "The body is larger than max_request_bytes.",
    415: "Content of a form where JSON is read, or compressed otherwise than by gzip or deflate.",
    422: "Well-formed, but its values cannot be served.",
    431: "The headers are larger than 64 KiB.",
    429: "Too much is waiting, or the key has used what it may; see Retry-After.",
    500: "A fault of the server.",
    503: "No copy of the model can take it now; see Retry-After.",
    504: "It did not end within its time limit.",
}
_LOOK_ERRORS = {status: _WORK_ERRORS[status] for status in (403, 404, 429, 431, 500)}
_NO_KEY = "No API key, or one that is not known (where keys are set)."


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. Contents are by media type: a type of ours, or a JSON schema."""

    method: str
    path: str
    tag: str
    summary: str
    answer: Mapping[str, Any]
    body: Mapping[str, Any] | None = None
    other_answers: Mapping[int, Any] | None = None  # by status: JSON that is no error of ours
    is_open: bool = False  # needs no API key
    query: Mapping[str, Any] | None = None  # JSON schemas of what may stand behind the path
    more_errors: tuple[int, ...] = ()  # beside those of its kind

    @property
    def error_type(self) -> type[msgspec.Struct]:
        """The shape of errors."""
        if is_messages_path(self.path):
            return MessagesError
        if self.path in VLLM_PATHS:
            return VllmError
        return ProtocolError if is_protocol_path(self.path) else ErrorBody

    @property
    def errors(self) -> dict[int, str]:
        """What can go wrong, by status."""
        if self.is_open:
            return {status: _WORK_ERRORS[status] for status in (403, 431, 500)}
        errors = dict(_WORK_ERRORS if self.body is not None else _LOOK_ERRORS)
        if self.body is None and "{name}" not in self.path:
            errors.pop(404)
        return {**errors, **{status: _WORK_ERRORS[status] for status in self.more_errors}, 401: _NO_KEY}
