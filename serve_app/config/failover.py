"""What becomes of a generation whose copy of the model is lost."""

from pydantic import Field, PositiveFloat

from serve_app.config.base import ConfigModel


class FailoverConfig(ConfigModel):
    """`failover` of the Gateway: when requests go on with another copy, or with the same one once it is up again."""

    max_resumes: int = Field(default=3, ge=0, le=100)  # of one request; 0: it ends with its copy
    max_pause_s: PositiveFloat = 60.0  # from a loss until a copy goes on with it
    max_replayed_tokens: int = Field(default=256, ge=0)  # of an answer; a longer one is prefilled, which is faster
