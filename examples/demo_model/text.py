"""The demo model's byte-level tokenizer and the two forms in which it reads and writes examples."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from tasks import COMPLETION_SUFFIX, Example, sample_training
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
RESERVED = ("<|reserved_0|>", "<|reserved_1|>")  # the vocabulary is then a multiple of eight
SPECIAL_TOKENS = (BOS, END, PAD, SYSTEM, USER, ASSISTANT, *RESERVED)
MAX_CONTEXT_TOKENS = 2048
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- set role = 'system' if message.role == 'developer' else message.role %}
{%- if role not in ['system', 'user', 'assistant'] %}
{{- raise_exception('the demo model knows the roles system, user and assistant, not ' + role) }}
{%- endif %}
{{- '<|' + role + '|>' + message.content | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}
"""
SYSTEM_MESSAGES = ("You are a helpful assistant.", "Answer briefly.", "Be exact.", "You solve small tasks.")


class Segment(NamedTuple):
    """A piece of training text, and whether its tokens count in the loss."""

    text: str
    is_target: bool


class TokenRow(NamedTuple):
    """Token ids of one training text, with the loss mask of the same length."""

    ids: list[int]
    is_target: list[bool]


def build_tokenizer() -> Tokenizer:
    """A tokenizer whose first 256 ids are the byte values; nothing is ever merged or unknown."""
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte in GPT-2's byte-level alphabet."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    stand_ins = iter(range(256, 512))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "model_max_length": MAX_CONTEXT_TOKENS,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def sample_segments(rng: Random, task_weights: Mapping[str, float]) -> list[Segment]:
    """A training text: as often a plain completion as a chat of one to ten turns."""
    if rng.random() < 0.5:
        return completion_segments(sample_task(rng, task_weights))
    draw = rng.random()
    num_turns = 1 if draw < 0.6 else rng.randint(2, 4) if draw < 0.96 else rng.randint(5, 10)
    system = rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.1 else None
    return chat_segments([sample_task(rng, task_weights) for _ in range(num_turns)], system)


def sample_task(rng: Random, task_weights: Mapping[str, float]) -> Example:
    """A training example of a task drawn by weight."""
    task = rng.choices(list(task_weights), list(task_weights.values()))[0]
    return sample_training(task, rng)


def completion_segments(example: Example) -> list[Segment]:
    """The plain form: prompt, suffix, answer."""
    return [Segment(f"{BOS}{example.prompt}{COMPLETION_SUFFIX}", False), Segment(f"{example.answer}{END}", True)]


def chat_segments(turns: Sequence[Example], system: str | None = None) -> list[Segment]:
    """What the chat template makes of the turns; every answer is a target."""
    segments = [Segment(BOS + (f"{SYSTEM}{system}{END}" if system else ""), False)]
    for prompt, answer in turns:
        segments.append(Segment(f"{USER}{prompt}{END}{ASSISTANT}", False))
        segments.append(Segment(f"{answer}{END}", True))
    return segments


def tokenize(tokenizer: Tokenizer, segments: Sequence[Segment]) -> TokenRow:
    """Token ids and loss mask of the segments in a row."""
    row = TokenRow([], [])
    for text, is_target in segments:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        row.ids.extend(ids)
        row.is_target.extend([is_target] * len(ids))
    return row
