"""What running one line of a batch is asked of, and what comes back."""

import random
from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol

import msgspec

from serve_app.gateway.batches.callers import BatchCaller
from serve_app.gateway.batches.input_lines import InputLine, digest_of, parse_line
from serve_app.gateway.batches.results import Result
from serve_app.gateway.bodies.batches import AnsweredLine, LineError, LineResponse

MAX_WAIT_S = 60.0  # between attempts
_JITTER = 0.25  # of a wait: lines that were refused together do not come back together


@dataclass(frozen=True, slots=True)
class LineRequest:
    """One request of a batch, ready to run."""

    custom_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What an endpoint has answered. retry_after_s: None: trying again would not change it."""

    status: int
    body: bytes
    request_id: str
    retry_after_s: float | None = None


class CallLine(Protocol):
    """Runs a request as if it had come over HTTP."""

    async def __call__(self, path: str, body: bytes, caller: BatchCaller, limit_s: float) -> LineAnswer:
        """The answer of a path's endpoint, in time."""
        ...


def requests_left(lines: list[InputLine], done: Set[bytes]) -> list[LineRequest]:
    """The requests of checked lines that have not ended. Blocks."""
    parsed = [parse_line(line.content) for line in lines if line.content is not None]
    return [
        LineRequest(one.custom_id, msgspec.json.encode(one.body))
        for one in parsed
        if digest_of(one.custom_id) not in done
    ]


def answered(request: LineRequest, answer: LineAnswer) -> Result:
    """The line of an answer, in one line whatever the answer's own layout."""
    try:
        body = msgspec.Raw(msgspec.json.format(answer.body, indent=-1))
    except msgspec.DecodeError:
        return refused(request, "invalid_answer", "the endpoint answered something that is not JSON", answer.request_id)
    response = LineResponse(status_code=answer.status, request_id=answer.request_id, body=body)
    line = AnsweredLine(id=f"batch_{answer.request_id}", custom_id=request.custom_id, response=response)
    return Result(_written(line), is_error=not 200 <= answer.status < 300)


def refused(request: LineRequest, code: str, message: str, request_id: str) -> Result:
    """The line of a request that was not answered."""
    error = LineError(code=code, message=message)
    line = AnsweredLine(id=f"batch_{request_id}", custom_id=request.custom_id, error=error)
    return Result(_written(line), is_error=True)


def wait_before(attempt: int, retry_after_s: float) -> float:
    """Seconds until a request is tried again. attempt: how often it was, from 0."""
    wait_s = max(retry_after_s, min(MAX_WAIT_S, 2.0**attempt))
    return wait_s * (1 + _JITTER * random.random())


def _written(line: AnsweredLine) -> bytes:
    return msgspec.json.encode(line) + b"\n"
