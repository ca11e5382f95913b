"""Tiny directories as sentence-transformers saves them, with a tokenizer of whole words."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import BertTokenizerFast

from serve_app.checkpoints.encoder_spec import EncoderChoices, EncoderSpec, read_encoder_spec
from serve_app.engine.encoder_loader import load_encoder_stage
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.planning.planner import plan_shards
from serve_app.preprocessing.tokenizer import Tokenizer
from tests.encoder_checkpoints import make_encoder
from tests.stage_group import CPU, settings_of

WORDS = (
    "query",
    "passage",
    ":",
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "slept",
    "Dog",
    "dog",
    "ran",
    "far",
    "!",
)
TEXTS = ["the cat sat", "a dog ran far and slept on the mat !", "Dog", "the mat : a mat"]


def write_json(path: Path, value: object) -> None:
    """Write a file that a directory holds."""
    path.write_text(json.dumps(value))


def save_words(directory: Path, **options: Any) -> None:
    """A cased tokenizer of WORDS beside a model of at least 24 tokens."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    arguments: dict[str, Any] = {"do_lower_case": False, "model_max_length": 64, **options}
    BertTokenizerFast(vocab=vocabulary, **arguments).save_pretrained(str(directory))


def make_transformer(name: str, directory: Path, **changes: Any) -> Path:
    """A model of transformers, with a tokenizer."""
    make_encoder(name, directory, **changes)
    save_words(directory)
    return directory


def save_modules(directory: Path, modules: Sequence[nn.Module], **options: Any) -> Path:
    """A directory of these modules, with weights that are not small."""
    torch.manual_seed(5)
    for module in modules[1:]:
        for parameter in module.parameters():
            parameter.data.normal_(0, 0.4)
    SentenceTransformer(modules=list(modules), device="cpu", **options).save(str(directory), create_model_card=False)
    return directory


def embed_texts(
    directory: Path, texts: Sequence[str], prompt: str | None = None, task: str = "embed", **choices: Any
) -> torch.Tensor:
    """What our own stage makes of texts [B, D], all packed into one step."""
    spec = read_encoder_spec(EncoderChoices(task, **choices), directory)
    (shard,) = plan_shards(spec.spec, 1, 1).shards
    settings = replace(settings_of(str(directory), task=task, **choices), shard=shard)
    stage = load_encoder_stage(settings, LoneCommunicator(), CPU)
    (output,) = stage.forward(packed(spec, texts, prompt), None).values()
    return output


def packed(
    spec: EncoderSpec, texts: Sequence[str | tuple[str, str]], prompt: str | None = None
) -> dict[str, torch.Tensor]:
    """The inputs of a stage, for texts or pairs."""
    tokenizer = Tokenizer.load(spec.spec.source_dir)
    entries = [(text,) if isinstance(text, str) else text for text in texts]
    encodings = [tokenizer.encode_entry(*entry, prompt=prompt, max_tokens=spec.max_tokens) for entry in entries]
    inputs = {
        "input_ids": torch.tensor([token for one in encodings for token in one.token_ids]),
        "lengths": torch.tensor([len(one.token_ids) for one in encodings]),
    }
    if spec.has_token_types:
        inputs["token_type_ids"] = torch.tensor([kind for one in encodings for kind in one.type_ids])
    if spec.has_prompt_lengths:
        inputs["prompt_lengths"] = torch.tensor([one.num_prompt_tokens for one in encodings])
    return inputs
