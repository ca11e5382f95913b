"""What becomes of a generation whose copy of the model is lost."""

from pydantic import Field, PositiveFloat

from serve_app.config.base import ConfigModel


class FailoverConfig(ConfigModel):
    """`failover` of the Gateway: when requests go on with another copy, or with the same one once it is up again."""

    max_resumes: int = Field(default=3, ge=0, le=100)
    """How often one request may go on after a loss; 0: it ends with its copy. [times]"""
    max_pause_s: PositiveFloat = 60.0
    """From a loss until a copy goes on with the request, at most."""
    max_replayed_tokens: int = Field(default=256, ge=0)
    """Longest answer that is replayed token by token, to the letter; a longer one is prefilled, which is faster."""
