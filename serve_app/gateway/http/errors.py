"""Errors in OpenAI's shape."""

import math
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serve_app.errors import ContextLengthError, ModelNotFoundError, RayshardError, UnsupportedEncodingError
from serve_app.gateway.failures import hidden_error, told_message
from serve_app.gateway.http.aliases import COHERE_PATHS, is_protocol_path
from serve_app.gateway.http.anthropic_errors import is_messages_path, messages_response
from serve_app.gateway.http.content_encoding import ENCODINGS
from serve_app.gateway.http.vllm_errors import VLLM_PATHS, vllm_error
from serve_app.gateway.request_notes import note_error


def error_body(error: RayshardError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return msgspec.json.encode(ErrorBody(_detail(error)))


async def on_rayshard_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for errors of ours; Cohere's clients find the message beside OpenAI's shape too."""
    assert isinstance(error, RayshardError)
    path = request.scope["path"]
    if is_protocol_path(path):
        return await on_protocol_error(request, error)
    note_error(error)
    if is_messages_path(path):
        return messages_response(request.scope, told_message(error), error.http_status, _headers(error), error.field)
    if path in COHERE_PATHS:
        content = msgspec.json.encode(CohereError(_detail(error), told_message(error)))
        return _json_response(content, error.http_status, _headers(error))
    return _json_response(_error_body_on(path, error), error.http_status, _headers(error))


async def on_protocol_error(_request: Request, error: Exception) -> Response:
    """An error of ours in the shape of the Open Inference Protocol and of Ollama: `{"error": message}`."""
    assert isinstance(error, RayshardError)
    note_error(error)
    return _json_response(msgspec.json.encode(ProtocolError(told_message(error))), error.http_status, _headers(error))


def _headers(error: RayshardError) -> dict[str, str]:
    headers = {}
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, UnsupportedEncodingError):
        headers["accept-encoding"] = ", ".join(ENCODINGS)
    if error.is_retryable:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 1.0)))
    elif error.http_status == HTTPStatus.TOO_MANY_REQUESTS:
        headers["x-should-retry"] = "false"  # to OpenAI's clients, which try every 429 again
    if error.http_status == HTTPStatus.REQUEST_TIMEOUT:
        headers["connection"] = "close"  # what is still to come of the body is not waited for
    return headers


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler for its own: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    message = {404: "no such path; see /v1/models", 405: "this path does not take that method"}.get(
        error.status_code, error.detail
    )
    if error.status_code == HTTPStatus.NOT_FOUND and request.url.path.startswith(_RESPONSES):
        message = "no such path; responses are not kept here, so that none can be looked up, cancelled or deleted"
    if is_protocol_path(request.url.path):
        return _json_response(msgspec.json.encode(ProtocolError(message)), error.status_code, dict(error.headers or {}))
    if is_messages_path(request.scope["path"]):
        return messages_response(request.scope, message, error.status_code, dict(error.headers or {}))
    kind = "invalid_request_error"
    content = msgspec.json.encode(ErrorBody(ErrorDetail(message, kind, None, _CODES_BY_STATUS.get(error.status_code))))
    if request.scope["path"] in VLLM_PATHS:
        content = vllm_error(message, kind, error.status_code, None)
    return _json_response(content, error.status_code, dict(error.headers or {}))


async def on_unexpected_error(request: Request, error: Exception) -> Response:
    """The answer to our own faults: no details for the client."""
    internal = hidden_error(error)
    if is_protocol_path(request.url.path):
        return await on_protocol_error(request, internal)
    if is_messages_path(request.scope["path"]):
        return messages_response(request.scope, told_message(internal), internal.http_status, {})
    return _json_response(_error_body_on(request.scope["path"], internal), internal.http_status, {})


class ErrorDetail(msgspec.Struct, frozen=True):
    """What was wrong, and with what."""

    message: str
    type: str
    param: str | None
    code: str | None


class ProtocolError(msgspec.Struct, frozen=True):
    """An error in the shape of the Open Inference Protocol and of Ollama."""

    error: str


class ErrorBody(msgspec.Struct, frozen=True):
    """An error in OpenAI's shape."""

    error: ErrorDetail


class CohereError(ErrorBody, frozen=True):
    """The same, with what Cohere's clients look for."""

    message: str


_RESPONSES = ("/v1/responses/", "/responses/")
_CODES_BY_STATUS = {401: "invalid_api_key", 404: "unknown_path", 405: "method_not_allowed"}


def _detail(error: RayshardError) -> ErrorDetail:
    return ErrorDetail(told_message(error), error.kind, error.field, _code(error))


def _code(error: RayshardError) -> str | None:
    if isinstance(error, ContextLengthError):
        return "context_length_exceeded"
    if isinstance(error, ModelNotFoundError):
        return "model_not_found"
    return None if error.kind == "invalid_request_error" else error.kind


def _error_body_on(path: str, error: RayshardError) -> bytes:
    if path in VLLM_PATHS:
        return vllm_error(told_message(error), error.kind, error.http_status, error.field)
    return error_body(error)


def _json_response(content: bytes, status: int, headers: dict[str, str]) -> Response:
    return Response(content, status_code=status, headers=headers, media_type="application/json")
