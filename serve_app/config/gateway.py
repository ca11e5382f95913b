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
from serve_app.config.batches import BatchesConfig
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

    max_request_bytes: ByteSize = 8_388_608
    """Largest body, before it was compressed: two million tokens of English; a larger one is answered 413."""
    request_timeout_s: PositiveFloat | None = None
    """How long an answer may take; null: as long as it does. What takes longer is answered 504."""
    body_timeout_s: PositiveFloat = 60.0
    """How long a request's body may take to arrive; then 408."""
    queue_timeout_s: PositiveFloat | None = 30.0
    """How long a request may wait for its turn; null: without end. Then 429, or 503 where no copy is up."""
    tokenizer_threads: int = Field(default=2, gt=0, le=256)
    """Threads that tokenize in each Gateway replica."""
    chat_template_timeout_s: PositiveFloat = 1.0
    """CPU time that a chat template may take."""
    chat_template_max_bytes: ByteSize = 8_388_608
    """Longest prompt that a chat template may make."""
    client_buffer_tokens: PositiveInt = 4096
    """What a client may leave unread of a stream; one that leaves more is aborted."""
    allowed_hosts: Annotated[list[Annotated[str, AfterValidator(_check_host)]], Field(min_length=1)] | None = None
    """Names that this server goes by; null: those of this machine where it listens on loopback, else any."""
    cors_allowed_origins: list[Annotated[str, AfterValidator(_check_origin)]] = []
    """Origins whose pages in a browser may call; "*": any."""
    failover: FailoverConfig = FailoverConfig()
    """When generations go on after their copy of the model is lost."""
    api_keys_file: str | None = None
    """File of API keys, which every node with a Gateway has; null: everybody may do everything."""
    open_metrics: bool = False
    """GET /metrics needs no key, where keys are used."""
    batches: BatchesConfig | None = None
    """Files of requests that are worked off in the background (/v1/files, /v1/batches); null: those are off."""
