"""The settings of several small models in one shard process."""

from pydantic import Field, field_validator, model_validator

from serve_app.config.autoscaling import AutoscalingConfig, kv_usage_problem
from serve_app.config.base import ConfigModel
from serve_app.config.engine import (
    DeviceConfig,
    EngineConfig,
    ParallelConfig,
    StandbyShards,
    TimeoutConfig,
    standby_problem,
)
from serve_app.config.model import ModelConfig

_SHARED = ("parallel", "device", "engine", "standby_shards", "autoscaling", "timeouts")


class ModelSetConfig(ConfigModel):
    """`args` of an application that holds several small models in one shard process."""

    models: list[ModelConfig] = Field(min_length=1, max_length=256)
    """The models, each as above without what they share."""
    device: DeviceConfig = DeviceConfig()
    """What the shard process runs on."""
    standby_shards: StandbyShards = 0
    """Processes that wait for the loss of the shard process; on cpu only. [processes]"""
    autoscaling: AutoscalingConfig | None = None
    """How many copies there are, and when; null: as Serve's own settings of the Router say."""
    engine: EngineConfig = EngineConfig()
    """Batching, for all models together."""
    timeouts: TimeoutConfig = TimeoutConfig()
    """How long Router and shard process wait for one another."""

    @field_validator("engine")
    @classmethod
    def _sizes_no_cache(cls, value: EngineConfig) -> EngineConfig:
        value.refuse_kv_cache_settings("models that share a process")
        return value

    @model_validator(mode="after")
    def _can_share_a_process(self) -> "ModelSetConfig":
        for model in self.models:
            if model.is_generative:
                raise ValueError(f"models: {model.name} has task=generate; give it an application of its own")
            own = sorted(model.model_fields_set & set(_SHARED))
            if own:
                raise ValueError(f"models: {model.name} sets {own[0]}, which all models share; set it beside `models`")
        if "linear_kernel" in self.engine.model_fields_set and all(model.architecture for model in self.models):
            raise ValueError("engine.linear_kernel has no effect where each model has an architecture; remove it")
        names = [model.name for model in self.models]
        problem = kv_usage_problem(self.autoscaling, "models that share a process")
        problem = problem or self.engine.product_problem("models that share a process")
        if problem := problem or standby_problem(self.standby_shards, ParallelConfig(), self.device):
            raise ValueError(problem)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"models: name={twice[0]!r} is given more than once; give each model its own name")
        return self

    @property
    def shared_models(self) -> list[ModelConfig]:
        """The models with what they share."""
        shared = {
            "device": self.device,
            "engine": self.engine,
            "standby_shards": self.standby_shards,
            "autoscaling": self.autoscaling,
            "timeouts": self.timeouts,
        }
        return [model.model_copy(update=shared) for model in self.models]
