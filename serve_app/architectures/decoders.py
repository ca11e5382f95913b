"""What must be known of an architecture, beyond its transformers class, to cut it into stages and ranks.

Names are relative to the base model (`model`, `transformer`): `layers.*.self_attn.q_proj`. Styles are those of
transformers' tensor-parallel plans; a table here takes the place of a plan that is missing, or that keeps whole
copies on each rank.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from serve_app.errors import ConfigError

PackedSizes = Callable[[Any], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where a decoder's parts are, and how its matrices are cut."""

    layers: str = "layers"
    embedding: str = "embed_tokens"
    entry: tuple[str, ...] = ()  # modules between the embedding and the first layer that belong to the first stage
    positions: tuple[str, ...] = ()  # learned position embeddings, added to the embedding
    exit: tuple[str, ...] = ("norm",)  # modules behind the last layer
    head: str = "lm_head"  # of the whole model, not of its base
    tensor_plan: Mapping[str, str] | None = None  # None: the plan of the transformers config
    packed: Mapping[str, PackedSizes] = field(default_factory=dict)  # sizes of matrices packed into one
    divided: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # module -> attributes that shrink with it
    divided_config: str | None = None  # a module whose forward reads head counts from its config


class Cuts(Protocol):
    """Where the parts are that tensor ranks share."""

    @property
    def embedding(self) -> str: ...
    @property
    def head(self) -> str | None: ...
    @property
    def tensor_plan(self) -> Mapping[str, str] | None: ...
    @property
    def packed(self) -> Mapping[str, PackedSizes]: ...
    @property
    def divided(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def divided_config(self) -> str | None: ...


def architecture_of(model_type: str) -> Architecture:
    """The architecture of a transformers `model_type`; raises ConfigError for those not supported."""
    architecture = _ARCHITECTURES.get(model_type)
    if architecture is None:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise ConfigError(f"model_type={model_type!r} cannot be split yet; supported: {known}", field="source")
    return architecture


def _phi3_qkv(config: Any) -> tuple[int, ...]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_size = config.num_key_value_heads * head_dim
    return config.num_attention_heads * head_dim, kv_size, kv_size


def _gate_up(config: Any) -> tuple[int, ...]:
    return config.intermediate_size, config.intermediate_size


def _gpt2_qkv(config: Any) -> tuple[int, ...]:
    return (config.hidden_size,) * 3


_LLAMA = Architecture()

_GPT2 = Architecture(
    layers="h",
    embedding="wte",
    positions=("wpe",),
    exit=("ln_f",),
    tensor_plan={
        "h.*.attn.c_attn": "packed_colwise",
        "h.*.attn.c_proj": "rowwise",
        "h.*.mlp.c_fc": "colwise",
        "h.*.mlp.c_proj": "rowwise",
    },
    packed={"h.*.attn.c_attn": _gpt2_qkv},
    divided={"attn": ("split_size", "num_heads")},
)

_OPT = Architecture(
    layers="decoder.layers",
    embedding="decoder.embed_tokens",
    entry=("decoder.project_in",),
    positions=("decoder.embed_positions",),
    exit=("decoder.final_layer_norm", "decoder.project_out"),
    tensor_plan={
        "decoder.layers.*.self_attn.q_proj": "colwise",
        "decoder.layers.*.self_attn.k_proj": "colwise",
        "decoder.layers.*.self_attn.v_proj": "colwise",
        "decoder.layers.*.self_attn.out_proj": "rowwise",
        "decoder.layers.*.fc1": "colwise",
        "decoder.layers.*.fc2": "rowwise",
    },
    divided={"self_attn": ("num_heads",)},
)

_PHI3 = Architecture(
    tensor_plan={
        "layers.*.self_attn.qkv_proj": "packed_colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_up_proj": "packed_colwise",
        "layers.*.mlp.down_proj": "rowwise",
    },
    packed={"layers.*.self_attn.qkv_proj": _phi3_qkv, "layers.*.mlp.gate_up_proj": _gate_up},
    divided={"self_attn": ("num_key_value_heads",)},
    divided_config="self_attn",
)

_MIXTRAL = Architecture(
    packed={"layers.*.mlp.experts.gate_up_proj": _gate_up},
    divided={"mlp.experts": ("intermediate_dim",)},
)

_ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "mixtral": _MIXTRAL,
    "gpt2": _GPT2,
    "opt": _OPT,
    "phi3": _PHI3,
}
