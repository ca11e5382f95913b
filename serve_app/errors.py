"""Every error a user can meet, each with its HTTP status, gRPC code and a message that says what to change.

RayshardError
├── ConfigError            a setting that cannot work (raised before anything is started)
├── RequestError           400  the request itself is wrong; names the field
│   ├── ModelNotFoundError 404
│   ├── NotFoundError      404  no such file or batch for this key
│   ├── SlowRequestError   408
│   ├── RequestTooLargeError 413
│   ├── UnsupportedMediaTypeError 415
│   ├── UnsupportedEncodingError 415
│   ├── HeadersTooLargeError 431
│   └── UnprocessableError 422  well-formed JSON whose values cannot be served
├── UnauthenticatedError   401  no API key, or one that is not known
│   └── AmbiguousKeyError  400  more than one API key
├── ForbiddenError         403  a page of another site, or a host that this server does not go by
├── QueueFullError         429  too much is waiting; try again after retry_after_s
│   └── RateLimitedError   429  the API key has used what it may
│       └── TooManyTokensError 429  more than the API key may ever use in a minute
├── UnavailableError       503  no model copy can take it now
│   └── ShardLostError     503  a shard died while the request was there
│       ├── StepLostError  503  and while a step of it ran
│       └── PeerLostError  503  one that lives tells that another is gone
├── TimeoutExceededError   504
├── RequestAbortedError    499  the client left, or did not read
└── InternalError          500  our fault
"""

from typing import ClassVar


class RayshardError(Exception):
    """Root of all errors that reach a user."""

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"
    kind: ClassVar[str] = "internal_error"
    is_retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.field, self.retry_after_s)


def error_of_kind(name: str, message: str, field: str | None, retry_after_s: float | None) -> RayshardError:
    """The error of a class's name, as another process has told it; an unknown name is an InternalError."""
    found = _subclasses(RayshardError).get(name, InternalError)
    return found(message, field=field, retry_after_s=retry_after_s)


def _subclasses(parent: type[RayshardError]) -> dict[str, type[RayshardError]]:
    classes: dict[str, type[RayshardError]] = {}
    for child in parent.__subclasses__():
        classes |= {child.__name__: child, **_subclasses(child)}
    return classes


def _rebuild(
    error_class: type[RayshardError], message: str, field: str | None, retry_after_s: float | None
) -> RayshardError:
    return error_class(message, field=field, retry_after_s=retry_after_s)


class ConfigError(RayshardError):
    """A setting that cannot work."""

    http_status = 400
    grpc_code = "FAILED_PRECONDITION"
    kind = "config_error"


class RequestError(RayshardError):
    """The request is wrong; `field` names the part of it."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"
    kind = "invalid_request_error"


class ContextLengthError(RequestError):
    """Prompt and answer do not fit the model's context."""


class ModelNotFoundError(RequestError):
    """No model of that name is served."""

    http_status = 404
    grpc_code = "NOT_FOUND"
    kind = "not_found_error"


class NotFoundError(RequestError):
    """What a path names is not there, or not there for this key."""

    http_status = 404
    grpc_code = "NOT_FOUND"
    kind = "not_found_error"


class SlowRequestError(RequestError):
    """The body did not come within its time."""

    http_status = 408
    kind = "request_timeout"


class RequestTooLargeError(RequestError):
    """The body is larger than the server takes."""

    http_status = 413
    kind = "request_too_large"


class UnsupportedMediaTypeError(RequestError):
    """The body's content type is not one that the path takes."""

    http_status = 415
    kind = "unsupported_media_type"


class UnsupportedEncodingError(RequestError):
    """The body is compressed in a way that the server does not undo."""

    http_status = 415


class HeadersTooLargeError(RequestError):
    """The headers are larger than the server takes."""

    http_status = 431
    kind = "request_too_large"


class UnprocessableError(RequestError):
    """Well-formed, but its values cannot be served."""

    http_status = 422


class QueueFullError(RayshardError):
    """Too many requests are waiting, or this one waited too long."""

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"
    kind = "rate_limit_error"
    is_retryable = True


class RateLimitedError(QueueFullError):
    """An API key has used what it may."""


class TooManyTokensError(RateLimitedError):
    """One request asks for more tokens than its API key may use in a minute: waiting does not help."""

    is_retryable = False


class ForbiddenError(RayshardError):
    """The request comes from a page of another site, or names a host that this server does not go by."""

    http_status = 403
    grpc_code = "PERMISSION_DENIED"
    kind = "permission_error"


class UnauthenticatedError(RayshardError):
    """The request has no API key, or one that is not known."""

    http_status = 401
    grpc_code = "UNAUTHENTICATED"
    kind = "authentication_error"


class AmbiguousKeyError(UnauthenticatedError):
    """The request has more than one API key."""

    http_status = 400


class UnavailableError(RayshardError):
    """No copy of the model can take the request now."""

    http_status = 503
    grpc_code = "UNAVAILABLE"
    kind = "service_unavailable"
    is_retryable = True


class ShardLostError(UnavailableError):
    """A shard died or hung while the request waited or ran."""

    kind = "shard_lost"


class StepLostError(ShardLostError):
    """A shard died or hung in a step that the request was in: it may be the cause."""


class PeerLostError(ShardLostError):
    """A shard that is well itself cannot go on, because another of its group is gone."""


class TimeoutExceededError(RayshardError):
    """The request did not end within its time limit."""

    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"
    kind = "timeout_error"


class RequestAbortedError(RayshardError):
    """The client left, or stopped reading."""

    http_status = 499
    grpc_code = "CANCELLED"
    kind = "aborted"


class InternalError(RayshardError):
    """A fault of the server."""


def forget_frames(error: BaseException) -> None:
    """Let go of the frames that an error and its causes have passed through.

    A frame may hold the future that holds the error: what the call took of memory would wait for a garbage collection.
    """
    told: BaseException | None = error
    while told is not None:
        told.__traceback__ = None
        told = told.__cause__ or told.__context__
