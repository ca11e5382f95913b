"""What must be known of an encoder, beyond its transformers class, to cut it into stages and ranks.

Names are relative to the base model, as in architecture.py, whose decoders can be embedders too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from serve_app.architectures.decoders import PackedSizes, architecture_of
from serve_app.errors import ConfigError

Pooled = Literal["first", "last", "as_config"]


@dataclass(frozen=True, slots=True)
class EncoderArchitecture:
    """Where an encoder's parts are, and how its matrices are cut."""

    layers: str
    embedding: str  # the vocabulary's
    embeddings: str  # the module of all embeddings, on the first stage only
    exit: tuple[str, ...] = ()  # modules behind the last layer
    first_only: tuple[str, ...] = ()  # modules inside the layers' loop that belong to the first stage
    head: str | None = None  # encoders have no head along the vocabulary
    positions: Literal["plain", "behind_padding"] = "plain"  # number of a text's first position
    is_causal: bool = False
    is_square: bool = False  # its attention wants one rectangular batch: [B, L]
    head_pools: Pooled = "first"  # the token that a classifier looks at
    has_inner_pooler: bool = False  # the base model ends in one of its own
    tensor_plan: Mapping[str, str] | None = None
    packed: Mapping[str, PackedSizes] = field(default_factory=dict)
    divided: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    divided_config: str | None = None


_BERT_PLAN = {
    "encoder.layer.*.attention.self.query": "colwise",
    "encoder.layer.*.attention.self.key": "colwise",
    "encoder.layer.*.attention.self.value": "colwise",
    "encoder.layer.*.attention.output.dense": "rowwise",
    "encoder.layer.*.intermediate.dense": "colwise",
    "encoder.layer.*.output.dense": "rowwise",
}

_BERT = EncoderArchitecture(
    layers="encoder.layer",
    embedding="embeddings.word_embeddings",
    embeddings="embeddings",
    has_inner_pooler=True,
    tensor_plan=_BERT_PLAN,
    divided={"attention.self": ("num_attention_heads", "all_head_size")},
)

_ROBERTA = EncoderArchitecture(
    layers="encoder.layer",
    embedding="embeddings.word_embeddings",
    embeddings="embeddings",
    positions="behind_padding",
    tensor_plan=_BERT_PLAN,
    divided={"attention.self": ("num_attention_heads", "all_head_size")},
)

_ARCHITECTURES = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": EncoderArchitecture(
        layers="transformer.layer", embedding="embeddings.word_embeddings", embeddings="embeddings"
    ),
    "modernbert": EncoderArchitecture(
        layers="layers",
        embedding="embeddings.tok_embeddings",
        embeddings="embeddings",
        exit=("final_norm",),
        head_pools="as_config",
    ),
    "deberta-v2": EncoderArchitecture(
        layers="encoder.layer",
        embedding="embeddings.word_embeddings",
        embeddings="embeddings",
        first_only=("encoder.conv",),
        is_square=True,
    ),
}


def encoder_architecture_of(model_type: str) -> EncoderArchitecture:
    """The architecture of a transformers `model_type`; a decoder embeds too. Raises ConfigError."""
    known = _ARCHITECTURES.get(model_type)
    if known is not None:
        return known
    try:
        decoder = architecture_of(model_type)
    except ConfigError:
        names = ", ".join(sorted(_ARCHITECTURES))
        message = f"model_type={model_type!r} cannot embed or classify yet; supported: {names}, and the llama family"
        raise ConfigError(message, field="source") from None
    if decoder.positions or decoder.entry:
        raise ConfigError(f"model_type={model_type!r} cannot embed or classify yet; use one of the llama family")
    return EncoderArchitecture(
        layers=decoder.layers,
        embedding=decoder.embedding,
        embeddings=decoder.embedding,
        exit=decoder.exit,
        is_causal=True,
        head_pools="last",
        tensor_plan=decoder.tensor_plan,
        packed=decoder.packed,
        divided=decoder.divided,
        divided_config=decoder.divided_config,
    )
