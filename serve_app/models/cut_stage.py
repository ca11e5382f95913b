"""What the code that cuts and fills a stage of a transformers model needs of it."""

from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from serve_app.architectures.head_sizes import HeadSizes
from serve_app.architectures.record import Architecture
from serve_app.types.shards import ShardSpec


class CutStage(Protocol):
    """A stage of a transformers model on the meta device, to be cut over ranks and filled."""

    shard: ShardSpec
    model: PreTrainedModel
    base: PreTrainedModel
    base_prefix: str  # of the base model's parameters in the whole model
    config: PreTrainedConfig
    head_kinds: tuple[HeadSizes, ...]  # of each kind of layers of the whole model, the widest first
    whole_state: dict[str, torch.Size]
    architecture: Architecture
    head: str | None  # over the vocabulary, a module of the whole model; None: this model has none

    @property
    def own_layers(self) -> list[nn.Module]: ...
