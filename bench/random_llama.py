"""Llamas with random weights in the sizes that the benchmarks use. Needs torch and transformers only."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from serve_app.models.transformers_model import TransformersStage
from serve_app.types.shards import ShardSpec

_MAX_POSITIONS = 4096
_NUM_BYTE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class LlamaSize:
    """What a llama's size follows from."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    is_tied: bool = False


SIZES = {
    "tiny": LlamaSize(64, 128, 4, 4, 2, 1024),
    "120M": LlamaSize(768, 2048, 12, 12, 4, 32_000),
    "1B": LlamaSize(2048, 8192, 16, 32, 8, 128_256, is_tied=True),
    "8B": LlamaSize(4096, 14336, 32, 32, 8, 128_256),
}


def config_of(size: LlamaSize) -> LlamaConfig:
    """The transformers config; no token ends a sequence."""
    return LlamaConfig(
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_kv_heads,
        vocab_size=size.vocab_size,
        tie_word_embeddings=size.is_tied,
        max_position_embeddings=_MAX_POSITIONS,
        eos_token_id=None,
    )


def make_model(size: LlamaSize, dtype: torch.dtype, device: torch.device, seed: int = 0) -> PreTrainedModel:
    """A model on its device, its weights wide enough for varied greedy output; 16 GB are filled in seconds on a GPU."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config_of(size), dtype=dtype, attn_implementation="sdpa")
    model.eval().requires_grad_(False)
    _widen(model, torch.Generator(device).manual_seed(seed))
    return model


def stage_of(model: PreTrainedModel) -> TransformersStage:
    """The whole model as one stage of our engine; both share the memory of the weights."""
    config = copy.deepcopy(model.config)
    num_layers = config.num_hidden_layers
    stage = TransformersStage(config, model.dtype, ShardSpec(0, 1, 0, 1, 0, num_layers))
    stage.model.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(stage.model.get_submodule(owner), leaf, buffer)
    return stage


def write_checkpoint(size: LlamaSize, dtype: torch.dtype, directory: Path, seed: int = 0) -> Path:
    """Write a model and a tokenizer, unless they are there."""
    if not (directory / "tokenizer.json").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        make_model(size, dtype, torch.device("cpu"), seed).save_pretrained(str(directory))
        (directory / "tokenizer.json").write_text(json.dumps(byte_level_tokenizer(size.vocab_size)))
    return directory


def byte_level_tokenizer(vocab_size: int) -> dict[str, object]:
    """A tokenizer.json of byte-level BPE: the bytes, then pairs of letters, then pairs and a letter."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    pairs = [(first, second) for first in letters for second in letters]
    triples = [(first + second, third) for third in letters for first, second in pairs]
    merges = (pairs + triples)[: vocab_size - _NUM_BYTE_TOKENS]
    tokens = [*_byte_symbols(), *(first + second for first, second in merges)]
    return {
        "version": "1.0",
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [list(merge) for merge in merges],
        },
    }


@torch.no_grad()
def _widen(model: nn.Module, generator: torch.Generator) -> None:
    """Draw the matrices anew, so that activations stay of order one."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            scale = 0.7 if "embed" in name else 1.5 * parameter.shape[-1] ** -0.5
            parameter.normal_(0, scale, generator=generator)


def _byte_symbols() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
