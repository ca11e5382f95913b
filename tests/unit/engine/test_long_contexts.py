"""Sequences longer than a model was first made for: what transformers gives, at every length that is served."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.compress.local_model import CausalAttention
from serve_app.engine.encoder_loader import load_encoder_stage
from serve_app.engine.loader import load_stage
from serve_app.models.transformers_model import TransformersStage
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.types.shards import EngineLimits, ShardSpec
from tests.checkpoints import load_reference, make_checkpoint
from tests.plain_driver import Split, driven_copy, greedy
from tests.stage_group import settings_of

ORIGINAL = 32
LONGEST = 128
CPU = torch.device("cpu")
LONGROPE = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 5.0, 9.0]}
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
    "yarn": ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}}),
    "llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": ORIGINAL,
            },
            "max_position_embeddings": LONGEST,
        },
    ),
    "longrope": (
        "phi3",
        {
            "rope_scaling": {"type": "longrope", **LONGROPE},
            "original_max_position_embeddings": ORIGINAL,
            "max_position_embeddings": LONGEST,
        },
    ),
    "longrope of llama": (
        "llama",
        {
            "rope_scaling": {"type": "longrope", **LONGROPE, "original_max_position_embeddings": ORIGINAL},
            "max_position_embeddings": LONGEST,
        },
    ),
}


def make(kind: str, directory: Path) -> Path:
    name, changes = ROPES[kind]
    return make_checkpoint(name, directory, **{"max_position_embeddings": ORIGINAL, **changes})


def load(directory: Path, max_model_len: int) -> TransformersStage:
    shard = ShardSpec(0, 1, 0, 1, 0, 4)
    return load_stage(directory, "float32", shard, LoneCommunicator(), CPU, max_model_len=max_model_len).stage


@torch.inference_mode()
def logits(stage: TransformersStage, sequences: list[list[int]]) -> list[Tensor]:
    """Of all tokens of each sequence, in one batch."""
    lengths = [len(sequence) for sequence in sequences]
    positions = torch.cat([torch.arange(length) for length in lengths])
    ids = torch.tensor([token for sequence in sequences for token in sequence])
    outputs = stage.forward(ids, positions, CausalAttention(lengths), torch.arange(len(ids)))
    return list(torch.split(outputs, lengths))


def tokens(length: int) -> list[int]:
    return torch.randint(3, 99, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def reference(directory: Path, sequence: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = load_reference(directory)(torch.tensor([sequence])).logits
    return logits[0]


def error_of(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", ROPES)
def test_the_longest_sequence_gets_what_transformers_gives_it(kind: str, tmp_path: Path) -> None:
    directory = make(kind, tmp_path)
    assert read_model_spec(directory).max_position_embeddings == LONGEST
    sequence = tokens(LONGEST)
    (ours,) = logits(load(directory, LONGEST), [sequence])
    assert error_of(ours, reference(directory, sequence)) < 1e-4


@pytest.mark.parametrize("kind", ROPES)
def test_within_the_original_length_nothing_is_stretched(kind: str, tmp_path: Path) -> None:
    directory = make(kind, tmp_path)
    sequence = tokens(ORIGINAL)
    (ours,) = logits(load(directory, ORIGINAL), [sequence])
    assert error_of(ours, reference(directory, sequence)) < 1e-4


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3", "longrope", "longrope of llama"])
def test_any_length_beyond_the_original_gets_what_transformers_gives_it(kind: str, tmp_path: Path) -> None:
    directory = make(kind, tmp_path)
    sequence = tokens(ORIGINAL + 9)
    (ours,) = logits(load(directory, LONGEST), [sequence])
    assert error_of(ours, reference(directory, sequence)) < 1e-4


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_long_request_changes_no_answer_beside_it(kind: str, tmp_path: Path) -> None:
    stage = load(make(kind, tmp_path), LONGEST)
    short, long = tokens(9), tokens(LONGEST)
    (alone,) = logits(stage, [short])
    beside, longer = logits(stage, [short, long])
    assert torch.allclose(beside, alone, atol=1e-5)
    assert torch.allclose(logits(stage, [long])[0], longer, atol=1e-5)


def test_dynamic_frequencies_are_vllms_where_the_length_is_factor_times_the_original(tmp_path: Path) -> None:
    stage = load(make("dynamic", tmp_path), LONGEST)
    dim, factor = 8, 4.0
    base = 10_000.0 * (factor * LONGEST / ORIGINAL - (factor - 1)) ** (dim / (dim - 2))
    expected = 1.0 / base ** (torch.arange(0, dim, 2) / dim)
    assert torch.allclose(stage.base.rotary_emb.inv_freq, expected, rtol=1e-5)


def test_an_embedder_has_the_frequencies_of_its_longest_text(tmp_path: Path) -> None:
    directory = make("longrope of llama", tmp_path)
    for max_tokens, is_long in ((ORIGINAL, False), (LONGEST, True)):
        settings = settings_of(str(directory), task="embed", max_model_len=max_tokens, normalize=False)
        stage: Any = load_encoder_stage(settings, LoneCommunicator(), CPU)
        factors = torch.tensor(LONGROPE["long_factor" if is_long else "short_factor"])
        expected = 1.0 / (factors * 10_000.0 ** (torch.arange(0, 8, 2) / 8))
        given = {"input_ids": torch.tensor(tokens(max_tokens)), "lengths": torch.tensor([max_tokens])}
        stage.forward(given, None)
        assert torch.allclose(stage.base.rotary_emb.inv_freq, expected, rtol=1e-5)


@pytest.mark.process
@pytest.mark.parametrize("kind", ["longrope", "linear"])
async def test_a_split_copy_serves_long_prompts_beside_short_ones(kind: str, tmp_path: Path) -> None:
    directory = make(kind, tmp_path)
    prompts = [tokens(ORIGINAL + 38), tokens(ORIGINAL + 1)]
    limits = EngineLimits(
        max_num_seqs=4, max_num_batched_tokens=64, max_model_len=LONGEST, block_size=16, num_blocks=32
    )
    async with driven_copy(directory, Split(2, 1), limits) as copy:
        requests = [greedy(str(index), prompt, 4, with_prompt_logprobs=True) for index, prompt in enumerate(prompts)]
        outcomes = await asyncio.wait_for(copy.generate(requests), 60)
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        rows = reference(directory, prompt + outcome.token_ids).log_softmax(-1)
        expected = rows[: len(prompt) - 1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        got = torch.tensor([entry.logprob for entry in outcome.prompt_logprobs])
        assert error_of(got, expected) < 1e-4
        assert rows[len(prompt) - 1 : -1].argmax(-1).tolist() == outcome.token_ids
