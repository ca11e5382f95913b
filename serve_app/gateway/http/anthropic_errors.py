"""Errors in the shape of Anthropic's Messages API, and the id by which a request is found again."""

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from msgspec import UNSET, UnsetType
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

MESSAGES_PATH = "/v1/messages"
REQUEST_ID = "request-id"  # the header that Anthropic's clients read
_PROXYS_ID = "x-request-id"  # of Serve's proxy, or the client's own
_TYPES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}


class MessagesErrorCode(msgspec.Struct, frozen=True):
    """What clients act upon by themselves."""

    error_code: str


class MessagesErrorDetail(msgspec.Struct, frozen=True):
    """Of which kind it is, and what was wrong."""

    type: str
    message: str
    details: MessagesErrorCode | UnsetType = UNSET


class MessagesError(msgspec.Struct, frozen=True):
    """An error of the Messages API, whole or as the event that ends a stream."""

    error: MessagesErrorDetail
    request_id: str | None
    type: str = "error"


def is_messages_path(path: str) -> bool:
    """Whether the Messages API says what is answered here."""
    return path == MESSAGES_PATH or path.startswith(f"{MESSAGES_PATH}/")


def messages_error(message: str, status: int, request_id: str | None, field: str | None = None) -> bytes:
    """The error as JSON, its type by the HTTP status."""
    by_range = "api_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    detail = MessagesErrorDetail(_TYPES.get(status, by_range), message, _CODES.get(field or "", UNSET))
    return msgspec.json.encode(MessagesError(detail, request_id))


def messages_response(
    scope: Scope, message: str, status: int, headers: Mapping[str, str], field: str | None = None
) -> Response:
    """The HTTP answer of an error. field: of the body, that is at fault."""
    content = messages_error(message, status, request_id_of(scope), field)
    all_headers = {**headers, **request_id_headers(scope)}
    return Response(content, status_code=status, headers=all_headers, media_type="application/json")


def request_id_of(scope: Scope) -> str | None:
    """What the answer's `x-request-id` says too; None without the proxy that writes it."""
    return Headers(scope=scope).get(_PROXYS_ID)


def request_id_headers(scope: Scope) -> dict[str, str]:
    """The header that names the request to Anthropic's clients."""
    request_id = request_id_of(scope)
    return {} if request_id is None else {REQUEST_ID: request_id}


_CODES = {"thread": MessagesErrorCode("thread_unsupported_request")}  # then tool runners send conversations whole
