"""How many copies a model has, and what decides it."""

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from serve_app.config.base import ConfigModel


class AutoscalingConfig(ConfigModel):
    """A model's `autoscaling`: bounds, targets, and how fast its copies come and go. All targets hold at once."""

    min_replicas: int = Field(default=1, ge=0)
    """Fewest copies; 0: the model sleeps when nobody asks, and the first request waits for a start. [copies]"""
    max_replicas: PositiveInt
    """Most copies. [copies]"""
    target_ttft_s: PositiveFloat = 2.0
    """Time to the first token that requests shall have."""
    queue_share: float = Field(default=0.5, gt=0, le=1)
    """Share of target_ttft_s that a request may wait for its turn. [none]"""
    kv_usage: float = Field(default=0.8, gt=0, le=1)
    """Share of the KV cache that may be in use; of task generate. [none]"""
    capacity_usage: float = Field(default=0.8, gt=0, le=1)
    """Share of a copy's tokens each second, and of its max_num_seqs, that may be used. [none]"""
    capacity_tokens_per_s: PositiveFloat | None = None
    """Prompt and output tokens that a copy can do each second; null: the most it has done."""
    upscale_step: float = Field(default=2.0, gt=0)
    """Copies that may start at once, for each one that runs. [none]"""
    downscale_step: float = Field(default=0.25, gt=0, le=1)
    """Share of the copies that may go at once. [none]"""
    downscale_delay_s: float = Field(default=300.0, ge=0)
    """How long fewer copies must have been enough before some go."""
    idle_delay_s: float = Field(default=600.0, ge=0)
    """How long nobody has asked before the last copy goes; of min_replicas: 0."""
    startup_s: PositiveFloat | None = None
    """What a copy takes to start; null: as the copies measure it."""

    @model_validator(mode="after")
    def _has_room(self) -> "AutoscalingConfig":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}; raise max_replicas"
            )
        if self.min_replicas > 0 and "idle_delay_s" in self.model_fields_set:
            raise ValueError(
                f"idle_delay_s={self.idle_delay_s:g} has no effect with min_replicas={self.min_replicas}; remove it, "
                "or set min_replicas: 0"
            )
        return self

    @property
    def num_first_replicas(self) -> int:
        """Copies that a deploy begins with: one at least, which shows that the model can be served."""
        return max(1, self.min_replicas)


def kv_usage_problem(config: AutoscalingConfig | None, owner: str) -> str | None:
    """Why a section is not for models that keep no KV cache, which `owner` names."""
    if config is not None and "kv_usage" in config.model_fields_set:
        return f"autoscaling.kv_usage={config.kv_usage:g} has no effect on {owner}: no KV cache is kept; remove it"
    return None
