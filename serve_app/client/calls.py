"""What both carriers of the client have in common: calls, answers, and errors from statuses."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import (
    InternalError,
    ModelNotFoundError,
    QueueFullError,
    RayshardError,
    RequestAbortedError,
    RequestError,
    RequestTooLargeError,
    TimeoutExceededError,
    UnauthenticatedError,
    UnavailableError,
    UnprocessableError,
)

TIMEOUT_HEADER = "x-request-timeout-ms"
Arrays = Mapping[str, NDArray[np.generic]]
Sampling = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one choice of an answer grew by."""

    text: str
    choice: int = 0
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Classification:
    """The labels of one text, the most probable first."""

    label: str | None  # None: none holds
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallOptions:
    """Of one try of a call."""

    timeout_s: float | None
    api_key: str | None

    def headers(self) -> dict[str, str]:
        """As HTTP headers, or as metadata."""
        headers = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        if self.timeout_s is not None:
            headers[TIMEOUT_HEADER] = str(max(1, round(1000 * self.timeout_s)))
        return headers


class Carrier(Protocol):
    """HTTP or gRPC. Every method raises a RayshardError."""

    def generate(
        self, model: str | None, prompt: str | Sequence[int], sampling: Sampling, options: CallOptions
    ) -> AsyncIterator[Piece]:
        """Pieces of a text's continuation."""
        ...

    def chat(
        self, model: str | None, messages: Sequence[Mapping[str, str]], sampling: Sampling, options: CallOptions
    ) -> AsyncIterator[Piece]:
        """Pieces of a conversation's answer."""
        ...

    async def embed(
        self, model: str | None, texts: Sequence[str], settings: Sampling, options: CallOptions
    ) -> NDArray[np.float32]:
        """Vectors [N, D]."""
        ...

    async def classify(
        self, model: str | None, texts: Sequence[str], settings: Sampling, options: CallOptions
    ) -> list[Classification]:
        """Labels of each text."""
        ...

    async def predict(self, model: str, inputs: Arrays, options: CallOptions) -> dict[str, NDArray[np.generic]]:
        """A module's outputs."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


_BY_STATUS: dict[int, type[RayshardError]] = {
    one.http_status: one
    for one in (
        RequestError,
        UnauthenticatedError,
        ModelNotFoundError,
        RequestTooLargeError,
        UnprocessableError,
        QueueFullError,
        UnavailableError,
        TimeoutExceededError,
    )
}
_BY_CODE: dict[str, type[RayshardError]] = {
    one.grpc_code: one
    for one in (
        RequestError,
        UnauthenticatedError,
        ModelNotFoundError,
        QueueFullError,
        UnavailableError,
        TimeoutExceededError,
        RequestAbortedError,
    )
}


def error_of_status(status: int, message: str, field_name: str | None, retry_after_s: float | None) -> RayshardError:
    """The error of an HTTP answer."""
    kind = _BY_STATUS.get(status, RequestError if 400 <= status < 500 else InternalError)
    return kind(message, field=field_name, retry_after_s=retry_after_s)


def error_of_code(code: str, message: str, retry_after_s: float | None) -> RayshardError:
    """The error of a gRPC status."""
    return _BY_CODE.get(code, InternalError)(message, retry_after_s=retry_after_s)
