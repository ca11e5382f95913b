"""Rotary frequencies that transformers chooses by the longest sequence of a batch, chosen once for a whole copy.

Else one request would change the answers of its batch-mates, and its own cached keys would not fit its later queries.
As in vLLM, a copy that takes longer sequences than the original length has the frequencies of long ones for all.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_BY_LENGTH = ("dynamic", "longrope")


def fix_frequencies(model: nn.Module, max_tokens: int) -> None:
    """Give every rotary embedding the frequencies that transformers gives a sequence of `max_tokens`, for good."""
    module: Any
    for module in model.modules():
        rope_type = getattr(module, "rope_type", None)
        if isinstance(rope_type, dict):  # of each kind of layer
            for layer_type, kind in rope_type.items():
                if kind in _BY_LENGTH:
                    _fix(module, kind, max_tokens, layer_type)
            module.rope_type = {name: "default" if kind in _BY_LENGTH else kind for name, kind in rope_type.items()}
        elif rope_type in _BY_LENGTH:
            _fix(module, rope_type, max_tokens, None)
            module.rope_type = "default"


def _fix(module: Any, rope_type: str, max_tokens: int, layer_type: str | None) -> None:
    prefix = "" if layer_type is None else f"{layer_type}_"
    old = module.get_buffer(f"{prefix}inv_freq")
    length = torch.tensor(max_tokens, device=old.device)  # a tensor, as its forward has it: the same roundings
    frequencies, scaling = ROPE_INIT_FUNCTIONS[rope_type](
        module.config, old.device, seq_len=length, layer_type=layer_type
    )
    setattr(module, f"{prefix}inv_freq", frequencies.to(old.dtype))
    setattr(module, f"{prefix}attention_scaling", scaling)
