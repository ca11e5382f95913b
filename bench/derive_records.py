"""Records of transformers' decoders, read off their classes and their plans; bench.architectures tries them."""

import json
from collections import defaultdict
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bench.tiny_models import small_config
from serve_app.architectures import derived
from serve_app.architectures.decoders import DECODERS
from serve_app.architectures.encoders import ENCODERS
from serve_app.architectures.other_heads import OtherHeads
from serve_app.architectures.record import HEAD_NORM, SHARED_NORM, Architecture, ConfigKeys, Parts, Sizes, TensorCut

TABLE = Path(derived.__file__).with_name("derived.json")
CUT_STYLES = ("colwise", "rowwise", "packed_colwise", "moe_tp_experts")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_INNER_WIDTHS = ("moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")
_LAYER_LISTS = ("layers", "h", "blocks", "layer")


# What cannot be read off a class.
STORED_HEADS = {"gpt_neox": "embed_out"}
_GEMMA4_HEADS = OtherHeads(
    kv_heads_key="num_global_key_value_heads",
    kv_heads_switch="attention_k_eq_v",
    head_dim_key="global_head_dim",
    head_dim=512,
)
OTHER_HEADS = {
    "mimo_v2_flash": OtherHeads(kv_factor=2),
    "gemma4_text": _GEMMA4_HEADS,
    "gemma4_unified_text": _GEMMA4_HEADS,
}
UNSERVED_KEYS: dict[str, dict[str, int]] = {
    "gemma4_text": {"hidden_size_per_layer_input": 256, "num_kv_shared_layers": 0, "use_bidirectional_attention": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
}
REFUSALS = {  # by reasons that a class does not state
    "doge": "it adds scores of its own to those of attention",
    "gemma3n_text": "each of its layers looks tokens up in an embedding of its own, and layers share keys and values",
    "hrm_text": "its layers run several times over each token",
    "lfm2": "its layers keep a state in place of each token's keys and values",
    "lfm2_moe": "its layers keep a state in place of each token's keys and values",
    "llama4_text": "it counts positions within a batch",
    "longcat_flash": "each of its layers has two attentions",
    "minimax": "its layers keep a state in place of each token's keys and values",
    "zamba2": "its layers keep a state in place of each token's keys and values",
    "zaya": "its layers keep a state in place of each token's keys and values",
    "bamba": "its layers keep a state in place of each token's keys and values",
    "granitemoehybrid": "its layers keep a state in place of each token's keys and values",
    "mamba2": "its layers keep a state in place of each token's keys and values",
    "gpt_neo": "its attention is not behind transformers' attention interface",
    "musicgen": "it reads more than text",
    "musicgen_melody": "it reads more than text",
}


class NoRecordError(Exception):
    """Why a class has no record."""


def derive_record(default: PreTrainedConfig, small: PreTrainedConfig) -> Architecture:
    """The record of a type: its default config gives sizes, a small model of it names. Raises NoRecordError."""
    if default.model_type in REFUSALS:
        raise NoRecordError(REFUSALS[default.model_type])
    check_kind(default)
    model = AutoModelForCausalLM.from_config(small, attn_implementation="eager")
    parts = find_parts(model, small.num_hidden_layers)
    cut = derive_cut(model, default, parts)
    return Architecture(
        sizes=_sizes(default),
        keys=_keys(default),
        parts=replace(parts, stored_head=STORED_HEADS.get(default.model_type)),
        tensor_cut=cut,
        other_heads=OTHER_HEADS.get(default.model_type),
        layer_kinds=tuple(sorted(set(getattr(small, "layer_types", None) or ()))),
        unserved_keys=UNSERVED_KEYS.get(default.model_type, {}),
        sparse_above=_sparse_above(model, default),
        streams_key="hc_mult" if hasattr(default, "hc_mult") else None,
        layers_give_tuples=_layers_give_tuples(model, parts),
    )


def _layers_give_tuples(model: PreTrainedModel, parts: Parts) -> bool:
    found: list[bool] = []
    layers = model.base_model.get_submodule(parts.layers)
    assert isinstance(layers, nn.ModuleList)
    hook = layers[0].register_forward_hook(lambda _layer, _args, output: found.append(isinstance(output, tuple)))
    with torch.no_grad():
        model(torch.tensor([[3, 4, 5]]), use_cache=False)
    hook.remove()
    return found[0]


def _sparse_above(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, int]:
    if not any(name.endswith(".indexer") for name, _ in model.named_modules()):
        return {}
    for keys in (("index_topk_blocks", "index_block_size"), ("index_topk",)):
        if all(isinstance(getattr(config, key, None), int) for key in keys):
            return {key: getattr(config, key) for key in keys}
    raise NoRecordError("an indexer chooses what its attention sees, by sizes that we do not know")


def check_kind(config: PreTrainedConfig) -> None:
    """Raises NoRecordError for what is served by no record."""
    if getattr(config, "is_encoder_decoder", False):
        raise NoRecordError("it has an encoder beside its decoder")
    if any(name != "text_config" for name in config.sub_configs) or "text_config" in config.sub_configs:
        raise NoRecordError("it reads more than text")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise NoRecordError("it is not a model that generates, nor an encoder that is served")
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if getattr(kind, "_is_stateful", False):
        raise NoRecordError("its layers keep a state in place of each token's keys and values")
    if not getattr(kind, "_supports_attention_backend", False):
        raise NoRecordError("its attention is not behind transformers' attention interface")
    if hasattr(config, "is_decoder") and not config.base_model_pp_plan:
        raise NoRecordError("it is an encoder, whose head for generation is not served")


def find_parts(model: PreTrainedModel, num_layers: int) -> Parts:
    """Where embeddings, layers, what follows them, and head are."""
    base = model.base_model
    if base is model:
        raise NoRecordError("has no base model beside its head")
    layers = next(
        (
            name
            for name, module in base.named_modules()
            if isinstance(module, nn.ModuleList)
            and name.rpartition(".")[2] in _LAYER_LISTS
            and len(module) == num_layers
        ),
        None,
    )
    if layers is None:
        raise NoRecordError(f"has no list of its {num_layers} layers")
    parent_name = layers.rpartition(".")[0]
    prefix = f"{parent_name}." if parent_name else ""
    embedding = _name_of(base, model.get_input_embeddings())
    head = _name_of(model, model.get_output_embeddings())
    before: list[str] = []
    positions: list[str] = []
    after: list[str] = []
    is_after = False
    for child_name, child in base.get_submodule(parent_name).named_children():
        name = prefix + child_name
        if name == layers:
            is_after = True
        elif name == embedding or "rotary" in child_name or "rope" in child_name:
            continue
        elif not any(True for _ in child.parameters()):
            continue  # what it does is undone where hidden states come in and go out
        elif isinstance(child, nn.Embedding) and "pos" in child_name:
            positions.append(name)
        else:
            (after if is_after else before).append(name)
    return Parts(
        layers=layers,
        embedding=embedding,
        entry=tuple(before),
        positions=tuple(positions),
        exit=tuple(after),
        head=head,
    )


def derive_cut(model: PreTrainedModel, config: PreTrainedConfig, parts: Parts) -> TensorCut | None:
    """transformers' plan in styles of ours; where it keeps whole copies, ours share the matrices where they can."""
    layer_list = model.base_model.get_submodule(parts.layers)
    assert isinstance(layer_list, nn.ModuleList)
    given: dict[str, str] = dict(getattr(config, "base_model_tp_plan", None) or _usual_plan(parts.layers))
    plan: dict[str, str] = {}
    prefix = f"{parts.layers}.*."
    for pattern, style in given.items():
        own = pattern.removeprefix(prefix)
        if own == pattern:
            continue
        targets = [found for layer in layer_list if (found := _find(layer, own)) is not None]
        if not targets:
            continue
        if own.endswith("gate_up_proj") and style == "colwise_gather_output":
            style = "packed_colwise"
        style = {"colwise_gather_output": "colwise", "rowwise_split_input": "rowwise"}.get(style, style)
        if style in CUT_STYLES:
            plan[pattern] = style
    if not plan:
        return None
    if _find(layer_list[-1], "mlp.experts.gate_up_proj_bias") is not None:  # gpt_oss: of other shapes, held whole
        plan = {name: style for name, style in plan.items() if ".experts" not in name}
    norms = ("self_attn.q_norm", "self_attn.k_norm")
    for num_dims, style in ((1, SHARED_NORM), (2, HEAD_NORM)):  # over all heads, or within each
        if all(_is_of_all_heads(layer_list[-1], own, plan.get(f"{prefix}{own[:-4]}proj"), num_dims) for own in norms):
            plan |= {prefix + own: style for own in norms}
    divided = {
        name: tuple(one for one in ("intermediate_dim", "intermediate_size", "expert_dim") if hasattr(module, one))
        for layer in layer_list
        for name, module in layer.named_modules()
        if name.endswith("experts") and f"{prefix}{name}.gate_up_proj" in plan
    }
    is_cut = any(own in plan for own in _kv_patterns(prefix))
    values = config.to_dict()
    inner = {key: values[key] for key in _INNER_WIDTHS if isinstance(values.get(key), int)}
    return TensorCut(plan=plan, divided=divided, has_whole_attention=not is_cut, inner_sizes=inner)


def _is_of_all_heads(layer: nn.Module, name: str, style: str | None, num_dims: int) -> bool:
    """Whether a norm has a weight of so many dimensions for each channel of its matrix's heads."""
    norm, linear = _find(layer, name), _find(layer, f"{name[:-4]}proj")
    if style != "colwise" or norm is None or not hasattr(norm, "variance_epsilon"):
        return False
    return bool(norm.weight.numel() == linear.weight.shape[0] and norm.weight.dim() == num_dims)


def _kv_patterns(prefix: str) -> list[str]:
    names = ("self_attn.k_proj", "self_attn.kv_b_proj", "attention.query_key_value", "self_attn.qkv_proj")
    return [prefix + name for name in names]


def _usual_plan(layers: str) -> dict[str, str]:
    """What most decoders call their matrices."""
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.gate_proj")
    columns = (*attention, "mlp.gate_proj", "mlp.up_proj", "mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj")
    rows = ("self_attn.o_proj", "mlp.down_proj", "mlp.shared_experts.down_proj")
    plan = {f"{layers}.*.{name}": "colwise" for name in (*columns, "self_attn.sinks")}
    plan |= {f"{layers}.*.{name}": "rowwise" for name in rows}
    experts = {"gate_up_proj": "packed_colwise", "down_proj": "rowwise"}
    plan |= {f"{layers}.*.mlp.experts.{name}": style for name, style in experts.items()}
    return plan | {f"{layers}.*.mlp.experts": "moe_tp_experts"}


def _find(layer: nn.Module, name: str) -> Any:
    found: Any = layer
    for step in name.split("."):
        found = getattr(found, step, None)
        if found is None:
            return None
    return found


def _name_of(root: nn.Module, wanted: nn.Module | None) -> str:
    for name, module in root.named_modules():
        if module is wanted and name:
            return str(name)
    raise NoRecordError("does not say where its embedding or its head is")


def _keys(config: PreTrainedConfig) -> ConfigKeys:
    mapped = type(config).attribute_map

    def names(canonical: str) -> tuple[str, ...]:
        return (mapped[canonical], canonical) if canonical in mapped else (canonical,)

    experts = tuple(key for key in _EXPERT_COUNTS if getattr(config, key, None) is not None)
    return ConfigKeys(
        num_layers=names("num_hidden_layers"),
        num_heads=names("num_attention_heads"),
        num_kv_heads=names("num_key_value_heads") if hasattr(config, "num_key_value_heads") else (),
        hidden_size=names("hidden_size"),
        intermediate_size=names("intermediate_size"),
        max_positions=names("max_position_embeddings"),
        num_experts=tuple(name for key in experts for name in names(key)),
        window_switch="use_sliding_window" if hasattr(config, "use_sliding_window") else None,
    )


def _sizes(config: PreTrainedConfig) -> Sizes:
    def size(name: str) -> int | None:
        own = type(config).attribute_map.get(name, name)
        value = vars(config)[own] if own in vars(config) else getattr(config, name, None)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    hidden_size, num_heads = size("hidden_size"), size("num_attention_heads")
    if hidden_size is None or num_heads is None:
        raise NoRecordError("has no hidden_size or num_attention_heads")
    plain, rotated = size("qk_nope_head_dim"), size("qk_rope_head_dim")
    is_latent = plain is not None and rotated is not None
    return Sizes(
        num_layers=size("num_hidden_layers") or 1,
        num_heads=num_heads,
        num_kv_heads=size("num_key_value_heads"),
        head_dim=None if is_latent else size("head_dim"),
        latent_dims=(plain, rotated) if plain is not None and rotated is not None else None,
        value_dim=size("v_head_dim"),
        hidden_size=hidden_size,
        intermediate_size=size("intermediate_size"),
        vocab_size=size("vocab_size") or 1,
        max_positions=size("max_position_embeddings") or 2048,
        num_experts=next((found for key in _EXPERT_COUNTS if (found := size(key))), None),
        sliding_window=size("sliding_window"),
        is_tied=bool(getattr(config, "tie_word_embeddings", False)),
    )


def row_of(record: Architecture) -> dict[str, Any]:
    """A record as the table keeps it: what differs from the defaults."""
    row: dict[str, Any] = {
        "sizes": _changed(record.sizes),
        "keys": _changed(record.keys),
        "parts": _changed(record.parts),
    }
    if record.tensor_cut is not None:
        row["tensor_cut"] = _changed(record.tensor_cut)
    if record.other_heads is not None:
        row["other_heads"] = _changed(record.other_heads)
    if record.layer_kinds:
        row["layer_kinds"] = list(record.layer_kinds)
    if record.unserved_keys:
        row["unserved_keys"] = dict(record.unserved_keys)
    if record.streams_key is not None:
        row["streams_key"] = record.streams_key
    if record.sparse_above:
        row["sparse_above"] = dict(record.sparse_above)
    if record.layers_give_tuples:
        row["layers_give_tuples"] = True
    return row


def _changed(part: Any) -> dict[str, Any]:
    values, required = asdict(part), {one.name for one in fields(part)}
    defaults = {one.name: one.default for one in fields(part)}
    return {name: values[name] for name in sorted(required) if values[name] != defaults[name] and values[name] != {}}


def refusals() -> dict[str, list[str]]:
    """Types that transformers knows and that no record can be made of, by the reason."""
    found: dict[str, list[str]] = defaultdict(list)
    for model_type in sorted(CONFIG_MAPPING):
        if model_type in DECODERS or model_type in ENCODERS:
            continue
        if model_type in REFUSALS:
            found[REFUSALS[model_type]].append(model_type)
            continue
        try:
            config = CONFIG_MAPPING[model_type]()
            check_kind(config)
        except NoRecordError as error:
            found[str(error)].append(model_type)
        except Exception:  # a config that is made of others
            found["it reads more than text"].append(model_type)
    return dict(found)


def main() -> None:
    """Write the records of all types that are not refused; `python -m bench.architectures --write` keeps what works."""
    refused = refusals()
    records = {}
    known = {name for names in refused.values() for name in names} | DECODERS.keys() | ENCODERS.keys()
    for model_type in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - known):
        record = derive_record(CONFIG_MAPPING[model_type](), small_config(model_type))
        records[model_type] = row_of(record)
    write_table(records, refused)


def write_table(records: dict[str, Any], refused: dict[str, list[str]]) -> None:
    """Write what the package reads."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(records.items()))
    reasons = ",\n".join(f"  {json.dumps(reason)}: {json.dumps(names)}" for reason, names in sorted(refused.items()))
    TABLE.write_text(f'{{"records": {{\n{rows}\n}},\n"refused": {{\n{reasons}\n}}}}\n')


if __name__ == "__main__":
    main()
