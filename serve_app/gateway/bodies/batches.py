"""Bodies of OpenAI's `/v1/files` and `/v1/batches`, and the lines of their files.

https://platform.openai.com/docs/api-reference/batch
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_CUSTOM_ID_CHARS = 512

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
MetadataKey = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """One file; `bytes` is its size, times are Unix seconds."""

    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    object: str = "file"
    status: str = "processed"


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/files`."""

    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class FileDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """`DELETE /v1/files/{id}`."""

    id: str
    deleted: bool = True
    object: str = "file"


class ExpiresAfter(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """When a file is deleted: so many seconds after it was made."""

    anchor: str
    seconds: Annotated[int, Meta(ge=3600, le=2_592_000)]


class BatchBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/batches`."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=16)] | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchLineError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a file is not worked; line: its number from 1, None where it is the file's fault."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(msgspec.Struct, frozen=True, kw_only=True):
    """`errors` of a batch that failed."""

    data: list[BatchLineError]
    object: str = "list"


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of a batch: all, those answered with 200, and the others that have ended."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Of the tokens sent, those that the prefix cache had."""

    cached_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Of the tokens drawn, those of reasoning, which responses alone count apart."""

    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all answers."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One batch; times are Unix seconds, null until they have come."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: BatchStatus = "validating"
    object: str = "batch"
    model: str | None = None
    errors: BatchErrors | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage = BatchUsage()
    metadata: dict[str, str] | None = None


class BatchList(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/batches`."""

    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class BatchLine(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One line of the file that a batch is made of."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=MAX_CUSTOM_ID_CHARS)]
    method: str
    url: str
    body: dict[str, object]


class LineResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What the endpoint has answered to a line."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a line was not run."""

    code: str
    message: str


class AnsweredLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an output file, or of an error file."""

    id: str
    custom_id: str
    response: LineResponse | None = None
    error: LineError | None = None


class AnsweredTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that an answer says it has used, in the words of completions and embeddings, or of responses."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: InputTokensDetails | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: InputTokensDetails | None = None
    output_tokens_details: OutputTokensDetails | None = None
