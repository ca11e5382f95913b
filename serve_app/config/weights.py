"""Weights at a URL."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
)

from serve_app.config.base import ConfigModel


class WeightsConfig(ConfigModel):
    """A safetensors file at an https URL, in place of the source's weights, or of a part of them."""

    url: str
    """Where the file is, by https."""
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]
    """Of the file: 64 hexadecimal digits."""
    private_hosts: list[str] = []
    """Names of hosts whose private addresses may be connected to."""

    @field_validator("url")
    @classmethod
    def _can_be_fetched(cls, value: str) -> str:
        problem = weights_url_problem(value)
        if problem is not None:
            raise ValueError(f"the URL {problem}")
        return value


# One file, or those that the weights are spread over.
WeightsFiles = Annotated[
    list[WeightsConfig],
    BeforeValidator(lambda given: [given] if isinstance(given, dict | WeightsConfig) else given),
    Field(min_length=1, max_length=1024),
]


def weights_url_problem(url: str) -> str | None:
    """Why weights cannot come from this URL, whatever answers there; None: they can."""
    try:
        parts = urlsplit(url)
        _port = parts.port
    except ValueError:
        return "is not a URL; write https://host/file.safetensors"
    if parts.scheme != "https":
        return f"has scheme {parts.scheme[:20] or 'none'!r}; only https is fetched: write https://host/file.safetensors"
    if not parts.hostname:
        return "names no host; write https://host/file.safetensors"
    if parts.username is not None or parts.password is not None:
        return "holds a user name or password; put the file where none is needed"
    if not url.isprintable() or not url.isascii() or " " in url:
        return "holds a character that is none of a URL's; encode it as %XX"
    return None
