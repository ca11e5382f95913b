"""Whether a file can be worked at all: every line is read before the first is run."""

from collections.abc import Sequence

from serve_app.errors import RequestError
from serve_app.gateway.batches.input_lines import InputLine, digest_of, parse_line
from serve_app.gateway.bodies.batches import BatchLine, BatchLineError
from serve_app.types.generation import LAST_PRIORITY

MAX_ERRORS = 100  # that are told of one file


class FileCheck:
    """Looks at the lines of one file in order, and keeps what is wrong with them."""

    def __init__(self, endpoint: str, *, max_requests: int, max_line_bytes: int) -> None:
        self.errors: list[BatchLineError] = []
        self.num_requests = 0
        self.model: str | None = None  # that all lines name
        self._endpoint = endpoint
        self._max_requests = max_requests
        self._max_line_bytes = max_line_bytes
        self._first_lines: dict[bytes, int] = {}  # by the digest of a custom_id
        self._first_line: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether no further line changes the outcome."""
        return len(self.errors) >= MAX_ERRORS or self.num_requests > self._max_requests

    def feed(self, lines: Sequence[InputLine]) -> None:
        """Look at some more lines."""
        for line in lines:
            if self.is_over:
                return
            self.num_requests += 1
            if self.num_requests > self._max_requests:
                message = f"the file has more than max_requests={self._max_requests} requests; split it"
                self.errors.append(BatchLineError(code="too_many_requests", message=message, line=line.number))
            else:
                self._look_at(line)

    def finish(self) -> None:
        """No more lines will come."""
        if self.num_requests == 0:
            message = "the file has no request; write one JSON object on each line"
            self.errors.append(BatchLineError(code="empty_file", message=message))

    def _look_at(self, line: InputLine) -> None:
        if line.content is None:
            message = f"the line is larger than {self._max_line_bytes} bytes (max_request_bytes of the Gateway)"
            self._add(line.number, "line_too_large", message)
            return
        try:
            request = parse_line(line.content)
        except RequestError as error:
            self._add(line.number, "invalid_line", error.message, error.field)
            return
        self._check_request(request, line.number)

    def _check_request(self, request: BatchLine, number: int) -> None:
        first = self._first_lines.setdefault(digest_of(request.custom_id), number)
        if first != number:
            message = f"custom_id={request.custom_id[:64]!r} stands on line {first} already; give each line its own"
            self._add(number, "duplicate_custom_id", message, "custom_id")
        if request.method != "POST":
            self._add(number, "invalid_method", f"method={request.method[:16]!r} is not POST", "method")
        if request.url != self._endpoint:
            message = f"url={request.url[:64]!r} is not the batch's endpoint {self._endpoint}; send one url in a batch"
            self._add(number, "mismatched_endpoint", message, "url")
        if request.body.get("stream") not in (None, False):
            self._add(number, "stream_unsupported", "stream is not for batches; leave it out", "body.stream")
        if request.body.get("priority") not in (None, LAST_PRIORITY):
            message = f"priority is {LAST_PRIORITY} for every request of a batch; leave it out"
            self._add(number, "priority_unsupported", message, "body.priority")
        self._check_model(request.body.get("model"), number)

    def _check_model(self, model: object, number: int) -> None:
        if not isinstance(model, str) or not model:
            self._add(number, "model_missing", "model is missing; name the one that is to answer", "body.model")
        elif self.model is None:
            self.model, self._first_line = model, number
        elif model != self.model:
            message = f"model={model[:64]!r} is not that of line {self._first_line}; send one model in a batch"
            self._add(number, "mismatched_model", message, "body.model")

    def _add(self, line: int, code: str, message: str, param: str | None = None) -> None:
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(BatchLineError(code=code, message=message, line=line, param=param))
