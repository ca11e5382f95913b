"""The results of a batch as they are on disk, which is what counts: one line for each request that has ended."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from serve_app.gateway.batches.input_lines import digest_of
from serve_app.gateway.bodies.batches import (
    AnsweredTokens,
    BatchUsage,
    InputTokensDetails,
    OutputTokensDetails,
    RequestCounts,
)


class _SeenBody(msgspec.Struct):
    usage: AnsweredTokens | None = None


class _SeenResponse(msgspec.Struct):
    body: msgspec.Raw


class _SeenLine(msgspec.Struct):
    custom_id: str
    response: _SeenResponse | None = None


_LINES = msgspec.json.Decoder(_SeenLine)
_BODIES = msgspec.json.Decoder(_SeenBody)


@dataclass(slots=True)
class Progress:
    """What has ended of a batch."""

    num_completed: int = 0
    num_failed: int = 0
    usage: BatchUsage = field(default_factory=BatchUsage)
    done: set[bytes] = field(default_factory=set)  # digests of custom_ids

    def add(self, line: bytes, *, is_error: bool) -> None:
        """A request has ended, and this was written. Raises msgspec.DecodeError for what was not written whole."""
        seen = _LINES.decode(line)
        self.done.add(digest_of(seen.custom_id))
        if is_error:
            self.num_failed += 1
            return
        self.num_completed += 1
        if seen.response is not None:
            self.usage = _sum(self.usage, _tokens_of(seen.response.body))

    def counts(self, total: int) -> RequestCounts:
        """As they are shown."""
        return RequestCounts(total=total, completed=self.num_completed, failed=self.num_failed)


@dataclass(frozen=True, slots=True)
class Result:
    """One line that is to be written."""

    line: bytes  # with its end
    is_error: bool


class ResultFiles:
    """The two files that results are appended to. Everything blocks."""

    def __init__(self, output: Path, errors: Path) -> None:
        self._paths = (output, errors)

    def read(self) -> Progress:
        """What is there, after whatever was not written whole is cut off."""
        progress = Progress()
        for is_error, path in enumerate(self._paths):
            _read_whole_lines(path, progress, is_error=bool(is_error))
        return progress

    def append(self, results: Sequence[Result]) -> None:
        """Write lines so that they outlast the machine's failure. Raises OSError; that file is as before then."""
        for is_error, path in enumerate(self._paths):
            content = b"".join(result.line for result in results if result.is_error == bool(is_error))
            if content:
                _append(path, content)

    @property
    def has_output(self) -> bool:
        """Whether there is an answer."""
        return _size_of(self._paths[0]) > 0

    @property
    def has_errors(self) -> bool:
        """Whether there is an error."""
        return _size_of(self._paths[1]) > 0


def _read_whole_lines(path: Path, progress: Progress, *, is_error: bool) -> None:
    num_good_bytes = 0
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    if not line.endswith(b"\n"):
                        break
                    progress.add(line, is_error=is_error)
                except msgspec.DecodeError:
                    break
                num_good_bytes += len(line)
    except FileNotFoundError:
        return
    if num_good_bytes < _size_of(path):
        os.truncate(path, num_good_bytes)


def _append(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fdatasync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _tokens_of(body: msgspec.Raw) -> AnsweredTokens:
    try:
        return _BODIES.decode(body).usage or AnsweredTokens()
    except msgspec.DecodeError:  # an answer that counts nothing, or in other words
        return AnsweredTokens()


def _sum(before: BatchUsage, more: AnsweredTokens) -> BatchUsage:
    given = more.prompt_tokens_details or more.input_tokens_details or InputTokensDetails()
    drawn = more.output_tokens_details or OutputTokensDetails()
    num_cached = before.input_tokens_details.cached_tokens + given.cached_tokens
    num_reasoned = before.output_tokens_details.reasoning_tokens + drawn.reasoning_tokens
    return BatchUsage(
        input_tokens=before.input_tokens + more.prompt_tokens + more.input_tokens,
        output_tokens=before.output_tokens + more.completion_tokens + more.output_tokens,
        total_tokens=before.total_tokens + more.total_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=num_cached),
        output_tokens_details=OutputTokensDetails(reasoning_tokens=num_reasoned),
    )
