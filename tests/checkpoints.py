"""Tiny random checkpoints of every supported architecture, made by transformers itself."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

VOCAB_SIZE = 99  # odd, so that a cut along the vocabulary is uneven

_LAST_NORMS = ("model.norm.weight", "ln_f.weight", "decoder.final_layer_norm.weight")

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "model_type": "llama", "tie_word_embeddings": False},
    "llama_tied": {**_COMMON, "model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {**_COMMON, "model_type": "qwen2", "tie_word_embeddings": False},
    "qwen3": {**_COMMON, "model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False},
    "mistral": {**_COMMON, "model_type": "mistral", "sliding_window": 12, "tie_word_embeddings": False},
    "olmo2": {**_COMMON, "model_type": "olmo2", "tie_word_embeddings": False},
    "gemma2": {**_COMMON, "model_type": "gemma2", "head_dim": 8, "sliding_window": 12, "query_pre_attn_scalar": 8},
    "gemma3": {
        **_COMMON,
        "model_type": "gemma3_text",
        "head_dim": 8,
        "sliding_window": 12,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "mixtral": {**_COMMON, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB_SIZE,
        "n_embd": 32,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "phi3": {**_COMMON, "model_type": "phi3", "original_max_position_embeddings": 256, "tie_word_embeddings": False},
    "opt": {
        "model_type": "opt",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
}


def make_checkpoint(name: str, directory: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a random checkpoint of an architecture, its weights wide enough for varied greedy output."""
    arguments = {**ARCHITECTURES[name], **changes}
    max_shard_size = arguments.pop("max_shard_size", "50GB")
    config = AutoConfig.for_model(**arguments)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _widen(model)
    model.generation_config.eos_token_id = None
    logging.disable_progress_bar()
    model.save_pretrained(str(directory), max_shard_size=max_shard_size)
    return directory


def load_reference(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The unsplit model, as transformers loads it."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(str(directory), dtype=dtype, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def _widen(model: PreTrainedModel) -> None:
    """Draw all parameters anew: activations of order one, biases and positions that count, sharp attention.

    A tied head favours the token that came in. So there the embeddings are smaller than what the layers add, and the
    last norm makes up for it.
    """
    embedding = model.get_input_embeddings()
    embedding_scale = getattr(embedding, "scalar_embed_scale", 1.0)  # Gemma multiplies what it looks up
    is_tied = model.config.tie_word_embeddings
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_" in name:
            parameter.add_(torch.randn_like(parameter) * 0.1)
            if "q_norm" in name or "k_norm" in name:
                parameter.add_(1.0)
            elif is_tied and name.endswith(_LAST_NORMS):
                parameter.add_(6.0 * embedding_scale)
        elif parameter.dim() == 1:
            parameter.normal_(0, 0.1)
        elif parameter is embedding.weight and is_tied:
            parameter.normal_(0, 0.1 / embedding_scale)
        elif "embed" in name or "wpe" in name:
            parameter.normal_(0, 0.7)
        else:
            fan_in = parameter.shape[0] if "c_" in name else parameter.shape[-1]
            parameter.normal_(0, 2.5 * fan_in**-0.5)
