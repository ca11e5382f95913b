"""Tiny random checkpoints of every encoder, made by transformers itself, and what transformers makes of texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)
from transformers.utils import logging

VOCAB_SIZE = 99
NUM_LABELS = 3

_BERT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
_DECODER = {key: value for key, value in _BERT.items() if key != "type_vocab_size"} | {
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
MAKERS = {
    "base": AutoModel,
    "classifier": AutoModelForSequenceClassification,
    "masked": AutoModelForMaskedLM,
    "generator": AutoModelForCausalLM,
}

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {**_BERT, "model_type": "bert"},
    "roberta": {**_BERT, "model_type": "roberta", "pad_token_id": 1},
    "xlm-roberta": {**_BERT, "model_type": "xlm-roberta", "pad_token_id": 1, "type_vocab_size": 1},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": VOCAB_SIZE,
        "dim": 32,
        "hidden_dim": 64,
        "n_layers": 4,
        "n_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    },
    "modernbert": {
        **_BERT,
        "model_type": "modernbert",
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "classifier_pooling": "mean",
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "deberta-v2": {
        **_BERT,
        "model_type": "deberta-v2",
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "conv_kernel_size": 3,
        "conv_act": "gelu",
        "position_biased_input": False,
        "pooler_hidden_size": 32,
    },
    "qwen3": {**_DECODER, "model_type": "qwen3", "head_dim": 16},
}
OTHER_DECODERS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        **_DECODER,
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "llama": {**_DECODER, "model_type": "llama"},
    "mistral": {**_DECODER, "model_type": "mistral", "sliding_window": 4},
    "qwen2": {
        **_DECODER,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 2,
    },
}


def make_encoder(
    name: str, directory: Path, *, is_classifier: bool = False, kind: str = "base", seed: int = 0, **changes: Any
) -> Path:
    """Write a random checkpoint, its weights wide enough for outputs of order one that differ from text to text."""
    arguments = {**ENCODERS, **OTHER_DECODERS}[name] | changes
    kind = "classifier" if is_classifier else kind
    if kind == "classifier":
        arguments.setdefault("num_labels", NUM_LABELS)
    config = AutoConfig.for_model(**arguments)
    torch.manual_seed(seed)
    model = MAKERS[kind].from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key.lower():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter.dim() == 1:
                parameter.normal_(0, 0.1)
            elif "embed" in key:
                parameter.normal_(0, 0.7)
            else:
                parameter.normal_(0, 1.2 * parameter.shape[-1] ** -0.5)
    logging.disable_progress_bar()
    model.save_pretrained(str(directory))
    return directory


@torch.inference_mode()
def reference_outputs(
    directory: Path, texts: Sequence[list[int]], types: Sequence[list[int]] | None, *, is_classifier: bool, pooling: str
) -> Tensor:
    """What transformers makes of each text alone: logits [B, C], or the pooled hidden states [B, D]."""
    logging.disable_progress_bar()
    make = AutoModelForSequenceClassification if is_classifier else AutoModel
    model = make.from_pretrained(str(directory), dtype=torch.float32, attn_implementation="eager").eval()
    outputs = []
    for index, text in enumerate(texts):
        arguments = {"input_ids": torch.tensor([text]), "attention_mask": torch.ones(1, len(text), dtype=torch.int64)}
        if types is not None:
            arguments["token_type_ids"] = torch.tensor([types[index]])
        output = model(**arguments)
        if is_classifier:
            outputs.append(output.logits[0])
            continue
        states = output.last_hidden_state[0]
        outputs.append({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling])
    return torch.stack(outputs)
