"""What a checkpoint is, from its config.json and its safetensors headers alone: no torch, no weights read."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.architectures.head_sizes import HeadSizes, complete_head_sizes, latent_head_sizes, other_head_sizes
from serve_app.architectures.lookup import GENERATORS, why_not_served
from serve_app.architectures.other_heads import OtherHeads
from serve_app.architectures.record import Architecture
from serve_app.architectures.tensor_names import is_head, layer_of
from serve_app.checkpoints.checkpoint_json import read_json, shown, some
from serve_app.checkpoints.config_keys import ConfigKeys
from serve_app.checkpoints.quantization import read_quantization
from serve_app.checkpoints.quantized_modules import CheckpointQuantization
from serve_app.checkpoints.rope_scaling import scaled_max_positions, unstretched_positions
from serve_app.checkpoints.safetensors_header import MAX_TENSORS, TensorHeader
from serve_app.checkpoints.stored_weights import check_stored_weights, has_words
from serve_app.checkpoints.weight_files import find_weight_files, read_tensors
from serve_app.errors import ConfigError
from serve_app.types.dtypes import DTYPES_BY_CODE, SERVED_DTYPES

_EXPERTS_PER_TOKEN = (
    *("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_k", "moe_top_k"),
    *("top_k_experts", "num_selected_experts", "num_activated_experts"),
)

_HEADS_OF_LAYERS = "num_attention_heads_per_layer"  # of types whose layers differ in their query heads


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes and tensors of one checkpoint."""

    source_dir: Path
    model_type: str
    architectures: tuple[str, ...]
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int | None
    num_experts: int | None
    vocab_size: int
    max_position_embeddings: int | None
    unstretched_positions: int | None  # where longer sequences have other rotary frequencies; None: nowhere
    is_tied: bool  # the head is the embedding
    dtype: str  # as torch names it
    sliding_window: int | None
    quantization: CheckpointQuantization | None
    tensors: dict[str, TensorHeader]
    num_bytes: int  # of all tensors
    value_dim: int | None = None  # None: head_dim
    other_heads: tuple[HeadSizes, ...] = ()  # of layers with narrower keys and values
    inner_sizes: dict[str, int] = field(default_factory=dict)  # further widths that tensor ranks share, by their keys
    experts_per_token: int | None = None  # None: config.json does not say, or there are none
    windowed_layers: frozenset[int] = frozenset()  # known to look no further back than the sliding window

    @property
    def heads(self) -> HeadSizes:
        """Of the layers with the widest keys and values."""
        return HeadSizes(self.num_heads, self.num_kv_heads, self.head_dim, self.value_dim or self.head_dim)

    @property
    def head_kinds(self) -> tuple[HeadSizes, ...]:
        """Of each kind of layers, the widest first."""
        return (self.heads, *self.other_heads)

    @property
    def default_max_tokens(self) -> int | None:
        """Tokens of the longest sequence where no setting gives them."""
        return self.unstretched_positions or self.max_position_embeddings


def read_model_spec(source_dir: Path) -> ModelSpec:
    """The checkpoint of a model that generates, in `source_dir`. Raises ConfigError for anything else."""
    spec = read_checkpoint(source_dir, GENERATORS)
    _check_head(spec)
    return spec


def read_checkpoint(source_dir: Path, architectures: Mapping[str, Architecture]) -> ModelSpec:
    """The checkpoint in `source_dir`, of one of these model types. Raises ConfigError when it cannot be served."""
    if not source_dir.is_dir():
        raise ConfigError(f"source={source_dir} is not a directory; give one with config.json and safetensors files")
    if (source_dir / "adapter_config.json").exists():
        raise ConfigError(f"source={source_dir} is an adapter (LoRA); merge it into its base model and give that")
    weight_files = find_weight_files(source_dir)
    config = _read_config(source_dir)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in architectures:
        reason = why_not_served(str(model_type), architectures, needs_own_code="auto_map" in config)
        raise ConfigError(
            f"source={source_dir}: model_type={shown(model_type)} in config.json is not supported: {reason}"
        )
    tensors = read_tensors(source_dir, weight_files)
    spec = _spec_of(source_dir, architectures[model_type], config, tensors)
    _check_completeness(spec)
    check_stored_weights(spec.quantization, tensors)
    return spec


def _read_config(source_dir: Path) -> dict[str, object]:
    path = source_dir / "config.json"
    if not path.is_file():
        raise ConfigError(f"source={source_dir} has no config.json; give a directory in Hugging Face's layout")
    return read_json(path)


def _spec_of(
    source_dir: Path, architecture: Architecture, config: dict[str, object], tensors: dict[str, TensorHeader]
) -> ModelSpec:
    keys = ConfigKeys(source_dir / "config.json", config)
    _check_kinds(keys, architecture)
    names, defaults = architecture.keys, architecture.sizes
    hidden_size = keys.count(names.hidden_size, defaults.hidden_size)
    heads, *other_heads = _head_kinds(keys, architecture, hidden_size)
    architectures = config.get("architectures")
    max_positions = keys.count(names.max_positions, defaults.max_positions)
    if architecture.sparse_above:
        sizes = architecture.sparse_above.items()
        max_positions = min(max_positions, math.prod(keys.count((key,), default) for key, default in sizes))
    return ModelSpec(
        source_dir=source_dir,
        model_type=str(config["model_type"]),
        architectures=tuple(str(name) for name in architectures) if isinstance(architectures, list) else (),
        num_layers=keys.count(names.num_layers, defaults.num_layers),
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        hidden_size=hidden_size,
        intermediate_size=keys.count_or_none(names.intermediate_size, defaults.intermediate_size) or 4 * hidden_size,
        num_experts=keys.count_or_none(names.num_experts, defaults.num_experts),
        vocab_size=keys.count(("vocab_size",), defaults.vocab_size),
        max_position_embeddings=scaled_max_positions(architecture, keys.values, max_positions),
        unstretched_positions=unstretched_positions(architecture, keys.values, max_positions),
        is_tied=keys.flag("tie_word_embeddings", defaults.is_tied),
        dtype=_dtype_of(keys, tensors),
        sliding_window=_sliding_window(keys, architecture),
        quantization=read_quantization(config, source_dir / "config.json", has_words=has_words(tensors)),
        tensors=tensors,
        num_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
        value_dim=heads.value_dim,
        other_heads=tuple(other_heads),
        inner_sizes=_inner_sizes(keys, architecture),
        experts_per_token=keys.count_or_none(_EXPERTS_PER_TOKEN, None),
        windowed_layers=_windowed_layers(keys, architecture),
    )


def _head_kinds(keys: ConfigKeys, architecture: Architecture, hidden_size: int) -> list[HeadSizes]:
    """Of each kind of layers, the widest first; a file that transformers has saved tells it layer by layer."""
    first, other = _head_sizes(keys, architecture, hidden_size), architecture.other_heads
    if other is None:
        return [first]
    by_layer = keys.values.get("per_layer_config")
    if isinstance(by_layer, dict):
        own = OtherHeads(kv_heads_key="num_key_value_heads", head_dim_key="head_dim")
        found = [other_head_sizes(first, own, values) for values in by_layer.values() if isinstance(values, dict)]
    else:
        found = [other_head_sizes(first, other, keys.values)]
    return sorted(dict.fromkeys([first, *found]), key=lambda one: one.width, reverse=True)


def _check_kinds(keys: ConfigKeys, architecture: Architecture) -> None:
    """Raises ConfigError for parts that the type may have and that are not served."""
    for key, default in architecture.unserved_keys.items():
        value = keys.values.get(key, default)
        if value:
            raise ConfigError(
                f"{keys.path}: {key}={shown(value)} is not served for model_type={keys.values['model_type']}; "
                "give a model without it"
            )
    kinds = keys.values.get("layer_types")
    for kind in kinds if architecture.layer_kinds and isinstance(kinds, list) else []:
        if kind not in architecture.layer_kinds:
            raise ConfigError(
                f"{keys.path}: layer_types names {shown(kind)}, which is not served; give a model whose layers are "
                f"{' or '.join(architecture.layer_kinds)}"
            )


def _head_sizes(keys: ConfigKeys, architecture: Architecture, hidden_size: int) -> HeadSizes:
    names, defaults = architecture.keys, architecture.sizes
    num_heads = keys.count(names.num_heads, defaults.num_heads)
    value_dim = None if defaults.value_dim is None else keys.count(("v_head_dim",), defaults.value_dim)
    if defaults.latent_dims is not None:
        plain_dim = keys.count(("qk_nope_head_dim",), defaults.latent_dims[0])
        rotated_dim = keys.count(("qk_rope_head_dim",), defaults.latent_dims[1])
        return latent_head_sizes(num_heads, rotated_dim, plain_dim, value_dim or plain_dim)
    return complete_head_sizes(
        hidden_size,
        num_heads,
        keys.count_or_none(names.num_kv_heads, defaults.num_kv_heads),
        keys.count_or_none(("head_dim",), defaults.head_dim),
        value_dim,
    )


def _inner_sizes(keys: ConfigKeys, architecture: Architecture) -> dict[str, int]:
    cut = architecture.tensor_cut
    if cut is None:
        return {}
    sizes = {key: keys.count((key,), default) for key, default in cut.inner_sizes.items()}
    by_layer = keys.values.get(_HEADS_OF_LAYERS)
    if cut.has_whole_attention or not isinstance(by_layer, list) or not by_layer:
        return sizes
    counts = [count for count in by_layer if isinstance(count, int) and count > 0]
    return sizes | {"heads of each layer": math.gcd(*counts)} if len(counts) == len(by_layer) else sizes


def _sliding_window(keys: ConfigKeys, architecture: Architecture) -> int | None:
    switch = architecture.keys.window_switch
    if switch is not None and not keys.flag(switch, False):
        return None
    return keys.count_or_none(("sliding_window",), architecture.sizes.sliding_window)


def _windowed_layers(keys: ConfigKeys, architecture: Architecture) -> frozenset[int]:
    """Those that config.json lists as such, or all where the family's attention has one window for all layers."""
    if _sliding_window(keys, architecture) is None:
        return frozenset()
    kinds = keys.values.get("layer_types")
    if isinstance(kinds, list):
        return frozenset(index for index, kind in enumerate(kinds) if kind == "sliding_attention")
    num_layers = keys.count(architecture.keys.num_layers, architecture.sizes.num_layers)
    return frozenset(range(min(num_layers, MAX_TENSORS)) if architecture.fused.has_window_in_config else ())


def _dtype_of(keys: ConfigKeys, tensors: Mapping[str, TensorHeader]) -> str:
    dtype = keys.values.get("dtype") or keys.values.get("torch_dtype")
    if isinstance(dtype, str):
        return dtype.removeprefix("torch.")
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        name = DTYPES_BY_CODE[tensor.dtype].name
        sizes[name if name in SERVED_DTYPES else tensor.dtype] += tensor.num_bytes
    return sizes.most_common(1)[0][0] if sizes else "float32"


def _check_completeness(spec: ModelSpec) -> None:
    found = {layer_of(name) for name in spec.tensors}
    missing = [str(layer) for layer in range(min(spec.num_layers, MAX_TENSORS)) if layer not in found]
    if missing:
        raise ConfigError(
            f"source={spec.source_dir}: config.json has {spec.num_layers} layers, but no tensors are there for layers "
            f"{some(missing)}; download the model again"
        )


def _check_head(spec: ModelSpec) -> None:
    if not spec.is_tied and not any(map(is_head, spec.tensors)):
        raise ConfigError(
            f"source={spec.source_dir}: tie_word_embeddings=false but there is no lm_head tensor; "
            "give a model for generation, or set tie_word_embeddings to true"
        )
