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
    """Bits of a weight, and whether inputs are rounded too. See docs/compress.md."""
    group_size: int | None = Field(default=None, gt=0, le=4096)
    """Inputs of an int4 weight that share a scale; null: 32. [inputs]"""
    include: list[Literal["embedding", "head"]] = []
    """What is quantized beside the layers' matrices."""
    ignore: list[str] = []
    """Modules that stay as they are, by the ends of their names."""

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

    report: str = "compress_report.json"
    """The report of `rayshard compress eval`: a name beside the model, or a path."""
    max_perplexity_increase: float | None = Field(default=None, ge=0)
    """How much higher the perplexity may be than the original's; 0.02 is 2 %. [share]"""
    min_top1_agreement: float | None = Field(default=None, ge=0, le=1)
    """How often the most probable token must be the original's. [share]"""
    max_kl: float | None = Field(default=None, ge=0)
    """Divergence from the original, at most. [nats a token]"""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "QualityConfig":
        if self.max_perplexity_increase is None and self.min_top1_agreement is None and self.max_kl is None:
            raise ValueError(
                "quality asks for nothing; set max_perplexity_increase, min_top1_agreement or max_kl, or remove it"
            )
        return self
