"""What is quantized while a model is loaded, and the gate of measured quality."""

from typing import Literal

from pydantic import (
    Field,
    model_validator,
)

from serve_app.config.base import ConfigModel
from serve_app.types.shards import LoadQuantization, WeightScheme

DEFAULT_GROUP_SIZE = 32  # inputs of an int4 weight that share a scale


class QuantizationConfig(ConfigModel):
    """What is quantized while a model is loaded, shard by shard."""

    scheme: Literal["int8", "int8_weight_only", "int4", "fp8"]
    group_size: int | None = Field(default=None, gt=0, le=4096)  # int4 only; None: 32
    include: list[Literal["embedding", "head"]] = []  # beside the layers' matrices
    ignore: list[str] = []  # modules that stay as they are, by the ends of their names

    @model_validator(mode="after")
    def _can_group(self) -> "QuantizationConfig":
        if self.group_size is not None and self.scheme != "int4":
            raise ValueError(f"group_size={self.group_size} has no effect on scheme={self.scheme}; remove it")
        return self

    @property
    def for_loading(self) -> LoadQuantization:
        """The same as shards take it."""
        schemes = {
            "int8": WeightScheme(8, has_quantized_inputs=True),
            "int8_weight_only": WeightScheme(8),
            "int4": WeightScheme(4, group_size=self.group_size or DEFAULT_GROUP_SIZE),
            "fp8": WeightScheme(8, is_float=True, has_quantized_inputs=True),
        }
        has_embedding, has_head = ("embedding" in self.include, "head" in self.include)
        return LoadQuantization(schemes[self.scheme], has_embedding, has_head, tuple(self.ignore))


class QualityConfig(ConfigModel):
    """The gate: what a compressed model's report must say before it is served."""

    report: str = "compress_report.json"  # beside the model, or a path
    max_perplexity_increase: float | None = Field(default=None, ge=0)  # a share: 0.02 is 2 %
    min_top1_agreement: float | None = Field(default=None, ge=0, le=1)
    max_kl: float | None = Field(default=None, ge=0)  # nats for each token

    @model_validator(mode="after")
    def _asks_for_something(self) -> "QualityConfig":
        if self.max_perplexity_increase is None and self.min_top1_agreement is None and self.max_kl is None:
            raise ValueError(
                "quality asks for nothing; set max_perplexity_increase, min_top1_agreement or max_kl, or remove it"
            )
        return self
