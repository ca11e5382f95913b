"""The Gateway's settings."""

import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PositiveInt,
)

from serve_app.config.base import ByteSize, ConfigModel
from serve_app.config.failover import FailoverConfig

_HOST = re.compile(r"\*|(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@*\s]+")


def _check_host(value: str) -> str:
    if _HOST.fullmatch(value) is None:
        raise ValueError(f"{value[:80]!r} is not a host; write its name alone, *.example.com, or * for any")
    return value


def _check_origin(value: str) -> str:
    if _ORIGIN.fullmatch(value) is None:
        raise ValueError(f"{value[:80]!r} is not an origin; write one like https://app.example.com, or * for any")
    return value


class GatewayConfig(ConfigModel):
    """`args` of the Gateway's application."""

    max_request_bytes: ByteSize = 8_388_608  # of a body, before it was compressed: two million tokens of English
    request_timeout_s: PositiveFloat | None = None
    body_timeout_s: PositiveFloat = 60.0  # for a request's body to arrive
    queue_timeout_s: PositiveFloat | None = 30.0
    tokenizer_threads: int = Field(default=2, gt=0, le=256)
    chat_template_timeout_s: PositiveFloat = 1.0  # CPU time of one template
    chat_template_max_bytes: ByteSize = 8_388_608  # of the rendered prompt
    client_buffer_tokens: PositiveInt = 4096  # a client that leaves more than this unread is aborted
    allowed_hosts: Annotated[list[Annotated[str, AfterValidator(_check_host)]], Field(min_length=1)] | None = None
    cors_allowed_origins: list[Annotated[str, AfterValidator(_check_origin)]] = []  # of pages that may call
    failover: FailoverConfig = FailoverConfig()
    api_keys_file: str | None = None  # None: everybody may do everything
    open_metrics: bool = False  # GET /metrics needs no key where keys are used
