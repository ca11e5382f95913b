"""Tiny random checkpoints of any type that transformers builds, by names that configs share."""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

VOCAB_SIZE = 99
NUM_LAYERS = 4

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "type_vocab_size": 2,
    "embedding_size": 32,
    "sliding_window": 12,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_positions": 256,
    "query_pre_attn_scalar": 8,
    "moe_layer_start_index": 1,
    "dropout": 0.0,
    "n_shared_experts": 1,
    "hidden_size_per_layer_input": 0,
    "global_head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXTRA: dict[str, dict[str, Any]] = {  # what a class wants beside that
    "cohere": {"use_qk_norm": True},  # off in small models of it, on in large ones
    "youtu": {"pad_token_id": None},  # transformers empties its row of a tied embedding
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    "gemma4_text": {"global_head_dim": 16},
    "gemma4_unified_text": {
        "global_head_dim": 16,
        "attention_k_eq_v": True,
        "num_key_value_heads": 4,
        "num_global_key_value_heads": 2,
    },
}


def small_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """A config of this type with tiny sizes, under the names that its class has for them."""
    kind = CONFIG_MAPPING[model_type]
    default = kind()
    mapped = kind.attribute_map
    known = default.to_dict()
    values = {mapped.get(key, key): value for key, value in _SMALL.items()}
    values = {key: value for key, value in values.items() if key in known}
    if isinstance(known.get("num_key_value_heads"), int) and known["num_key_value_heads"] == known.get(
        "num_attention_heads"
    ):
        values["num_key_value_heads"] = _SMALL["num_attention_heads"]
    for key in ("head_dim", "sliding_window", "q_lora_rank"):
        if known.get(key) is None and not (key == "head_dim" and known.get("rope_parameters")):
            values.pop(key, None)
    for key in ("layer_types", "mlp_layer_types"):
        if isinstance(known.get(key), list):
            values[key] = _first_kinds(known[key])
    return kind(**{**values, **EXTRA.get(model_type, {}), **changes})


def _first_kinds(kinds: list[str]) -> list[str]:
    """So many layers that every kind is among them."""
    found = list(dict.fromkeys(kinds))
    return (found * NUM_LAYERS)[:NUM_LAYERS]


def make_tiny(
    config: PreTrainedConfig, directory: Path, seed: int = 0, make: Any = AutoModelForCausalLM
) -> PreTrainedModel:
    """Write a random checkpoint whose greedy output is varied."""
    torch.manual_seed(seed)
    model: PreTrainedModel = make.from_config(config, dtype=torch.float32)
    widen(model)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = None
    logging.disable_progress_bar()
    model.save_pretrained(str(directory))
    return model


@torch.no_grad()
def widen(model: PreTrainedModel) -> None:
    """Draw all weights anew: activations of order one, biases that count, sharp attention."""
    stored = model.state_dict().keys()
    embedding = model.get_input_embeddings()
    for name, buffer in model.named_buffers():
        if name in stored and buffer.is_floating_point():
            buffer.normal_(0, 0.1)
    for name, parameter in model.named_parameters():
        if "norm" in name.lower() or ".ln" in name or "ln_" in name or parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif parameter is embedding.weight:
            parameter.normal_(0, 0.7)
        else:
            parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
