"""The Gateway's settings."""

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
)

from serve_app.config.base import ByteSize, ConfigModel


class GatewayConfig(ConfigModel):
    """`args` of the Gateway's application."""

    max_request_bytes: ByteSize = 1_048_576
    request_timeout_s: PositiveFloat | None = None
    queue_timeout_s: PositiveFloat | None = 30.0
    tokenizer_threads: int = Field(default=2, gt=0, le=256)
    chat_template_timeout_s: PositiveFloat = 1.0
    chat_template_max_bytes: ByteSize = 1_048_576  # of the rendered prompt
    client_buffer_tokens: PositiveInt = 4096  # a client that leaves more than this unread is aborted
    api_keys_file: str | None = None  # None: everybody may do everything
