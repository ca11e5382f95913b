"""What /openapi.json says of files and batches."""

from typing import Any

from serve_app.gateway.bodies.batches import Batch, BatchBody, BatchList, FileDeleted, FileList, FileObject
from serve_app.gateway.http.operation import BYTES, JSON, Operation

ID_PATTERNS = (("file_id", "^file-[0-9a-f]{32}$"), ("batch_id", "^batch_[0-9a-f]{32}$"))
_TAG = "batches"
_ANY_STATUS = (400, 404, 503)
_AFTER = {"type": "string", "description": "The last id of the page before."}
_FORM = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "JSONL, sent with a filename."},
        "purpose": {"const": "batch"},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
    "required": ["file", "purpose"],
}


def batch_operations() -> list[Operation]:
    """Every method of every path."""
    files_query = {
        "after": _AFTER,
        "limit": {"type": "integer", "minimum": 1, "maximum": 10_000},
        "order": {"enum": ["asc", "desc"]},
        "purpose": {"type": "string"},
    }
    batches_query = {"after": _AFTER, "limit": {"type": "integer", "minimum": 1, "maximum": 100}}

    def described(method: str, path: str, summary: str, answer: dict[str, Any], **more: Any) -> Operation:
        return Operation(method, path, _TAG, summary, answer, more_errors=_ANY_STATUS, **more)

    return [
        described("GET", "/v1/files", "Files of the key", {JSON: FileList}, query=files_query),
        described("POST", "/v1/files", "Keep a file of requests", {JSON: FileObject},
                  body={"multipart/form-data": _FORM}),
        described("GET", "/v1/files/{file_id}", "One file", {JSON: FileObject}),
        described("DELETE", "/v1/files/{file_id}", "Delete a file", {JSON: FileDeleted}),
        described("GET", "/v1/files/{file_id}/content", "A file's bytes",
                  {BYTES: {"type": "string"}}),
        described("GET", "/v1/batches", "Batches of the key", {JSON: BatchList}, query=batches_query),
        described("POST", "/v1/batches", "Work off the requests of a file", {JSON: Batch}, body={JSON: BatchBody}),
        described("GET", "/v1/batches/{batch_id}", "One batch", {JSON: Batch}),
        described("POST", "/v1/batches/{batch_id}/cancel", "End a batch before it is done", {JSON: Batch}),
    ]  # fmt: skip
