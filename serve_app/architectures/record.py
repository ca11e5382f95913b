"""What is known of one family of models: one record each, and nothing about it anywhere else. No torch.

Module names are relative to the base model (`model`, `transformer`): `layers.*.self_attn.q_proj`, `*` for each layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from serve_app.architectures.head_sizes import Width
from serve_app.architectures.other_heads import OtherHeads

HEAD_NORM = "head_norm"  # a style of ours: a norm within each head that has weights of its own for each [H, Dh]
SHARED_NORM = "shared_norm"  # a style of ours: an RMSNorm over all that a colwise cut has spread over the ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a missing key of config.json means: a file may leave out what equals the default of its class."""

    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None  # None: num_heads
    head_dim: int | None = None  # None: hidden_size / num_heads
    latent_dims: tuple[int, int] | None = None  # qk_nope_head_dim and qk_rope_head_dim, with a key for each head
    value_dim: int | None = None  # v_head_dim; None: values are as wide as keys
    hidden_size: int
    intermediate_size: int | None  # None: four times hidden_size
    vocab_size: int
    max_positions: int
    original_max_positions: int | None = None  # before longrope stretches them; None: max_positions
    num_experts: int | None = None
    sliding_window: int | None = None
    num_token_types: int | None = None  # None: the family has none, whatever config.json says
    is_tied: bool = False  # the head is the embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigKeys:
    """What config.json calls each size; the first key that is present counts."""

    num_layers: tuple[str, ...] = ("num_hidden_layers",)
    num_heads: tuple[str, ...] = ("num_attention_heads",)
    num_kv_heads: tuple[str, ...] = ("num_key_value_heads",)  # empty: always num_heads
    hidden_size: tuple[str, ...] = ("hidden_size",)
    intermediate_size: tuple[str, ...] = ("intermediate_size",)
    max_positions: tuple[str, ...] = ("max_position_embeddings",)
    num_experts: tuple[str, ...] = ()
    window_switch: str | None = None  # the sliding window counts only where this is true
    longrope_names: tuple[str, ...] = ("longrope",)  # values of rope_type that mean it
    has_stretched_positions: bool = False  # max_positions counts what a factor of rope scaling adds


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Where a model's parts are."""

    layers: str = "layers"
    embedding: str = "embed_tokens"  # of the vocabulary
    embeddings: str | None = None  # the module of all embeddings; None: the vocabulary's stands alone
    entry: tuple[str, ...] = ()  # between the embedding and the first layer
    positions: tuple[str, ...] = ()  # learned position embeddings, added to the embedding
    first_only: tuple[str, ...] = ()  # inside the loop over the layers, but on the first stage only
    exit: tuple[str, ...] = ("norm",)  # after the last layer
    head: str | None = "lm_head"  # of the whole model, not of its base; None: it does not generate
    stored_head: str | None = None  # what checkpoints call it; None: the same

    @property
    def before_layers(self) -> tuple[str, ...]:
        """What belongs to the first stage."""
        return (self.embeddings or self.embedding, *self.entry, *self.positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCut:
    """How tensor ranks share the matrices of a layer."""

    plan: Mapping[str, str] | None = None  # module -> style, transformers' or ours; None: its config's own plan
    packed: Mapping[str, tuple[Width, ...]] = field(default_factory=dict)  # matrices in one, by their numbers of rows
    kv_modules: tuple[str, ...] = ("k_proj", "v_proj", "k_norm")  # those whose rows are of key-value heads, where they
    # are cut by rows: by the last parts of their names
    divided: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # module -> attributes that shrink with it
    divided_config: str | None = None  # a module whose forward reads head counts from its config
    routers: tuple[str, ...] = ()  # held whole by each rank, as checkpoints call them
    has_whole_attention: bool = False  # each rank holds all heads, and their keys and values
    inner_sizes: Mapping[str, int] = field(default_factory=dict)  # further widths that the ranks share, by their keys


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFacts:
    """How a family embeds and classifies packed texts."""

    head_pools: Literal["first", "as_config", "last"] = "first"  # the token that a classifier looks at
    has_inner_pooler: bool = False  # the base model ends in one
    has_positions_after_padding: bool = False  # a text's first position is the one after pad_token_id
    is_causal: bool = False  # unless config.json says `is_causal: false`
    is_square: bool = False  # its attention wants one rectangular batch: [B, L]
    can_classify: bool = True  # transformers has a class of it with a sequence classification head


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedClasses:
    """Classes of transformers that ours replace, because they give the same numbers in fewer calls."""

    norm: str | None = None  # an RMSNorm whose weight is a plain factor, used in float32
    layer: str | None = None  # of llama's shape, with llama's names
    has_window_in_config: bool = False  # its attention reads the sliding window there, not from itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One family: what `model_type` stands for."""

    sizes: Sizes
    keys: ConfigKeys = field(default_factory=ConfigKeys)
    parts: Parts = field(default_factory=Parts)
    tensor_cut: TensorCut | None = None  # None: tensor ranks cannot share its layers
    encoder: EncoderFacts | None = None  # None: it neither embeds nor classifies
    fused: FusedClasses = field(default_factory=FusedClasses)
    same_input: tuple[tuple[str, ...], ...] = ()  # linear layers of one module that read the same tensor
    has_transposed_matrices: bool = False  # its linear layers are Conv1D, which keep [in, out]
    other_heads: OtherHeads | None = None  # None: all layers have keys and values of one shape
    layer_kinds: tuple[str, ...] = ()  # values of layer_types that are served; empty: any
    unserved_keys: Mapping[str, int] = field(default_factory=dict)  # to be 0, and what absent means
    sparse_above: Mapping[str, int] = field(default_factory=dict)  # keys of sizes: up to their product of tokens, an
    # indexer that chooses what attention sees chooses all; longer contexts are not served
    streams_key: str | None = None  # of config.json: as many hidden states of a token as it says go from layer to layer
    layers_give_tuples: bool = False  # the hidden states are the first of several things that a layer returns

    @property
    def can_generate(self) -> bool:
        """Whether it has a head over the vocabulary."""
        return self.parts.head is not None
