"""Errors as vLLM shows them, on the paths that it alone has."""

import msgspec

VLLM_PATHS = frozenset({"/pooling", "/tokenizer_info"})
_TYPES_BY_STATUS = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}


class VllmErrorDetail(msgspec.Struct, frozen=True):
    """What was wrong, and with what."""

    message: str
    type: str
    param: str | None
    code: int  # the HTTP status


class VllmError(msgspec.Struct, frozen=True):
    """An error as vLLM shows it."""

    error: VllmErrorDetail


def vllm_error(message: str, kind: str, status: int, field: str | None) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`; kind: of errors that vLLM has no name for."""
    return msgspec.json.encode(VllmError(VllmErrorDetail(message, _TYPES_BY_STATUS.get(status, kind), field, status)))
