"""Steps that are made up to measure memory: as large as limits allow, and such that a runner takes them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from serve_app.engine.largest_steps import largest_steps, num_step_blocks
from serve_app.types.shards import EngineLimits
from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.plain_driver import load_runner

LIMITS = EngineLimits(max_num_seqs=5, max_num_batched_tokens=64, max_model_len=200, block_size=4, num_blocks=0)
ALL_LIMITS = [
    LIMITS,
    replace(LIMITS, max_model_len=3),
    replace(LIMITS, max_num_batched_tokens=5),
    replace(LIMITS, max_num_seqs=1, block_size=1),
    replace(LIMITS, max_model_len=64, block_size=16),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"), max_position_embeddings=256)


@pytest.mark.parametrize("limits", ALL_LIMITS)
def test_the_widest_step_has_all_sequences_and_the_longest_ends_the_longest_context(limits: EngineLimits) -> None:
    widest, longest = largest_steps(limits, VOCAB_SIZE)
    most = limits.max_num_seqs * limits.max_model_len
    assert len(widest.token_ids) == sum(widest.num_tokens) == min(limits.max_num_batched_tokens, most)
    assert len(widest.starts) == limits.max_num_seqs
    assert all(widest.samples)
    assert max(widest.num_tokens) - min(widest.num_tokens) <= 1
    assert longest.num_computed[0] + longest.num_tokens[0] == limits.max_model_len
    assert len(longest.new_blocks[0]) == limits.max_blocks_per_seq
    blocks = [block for step in (widest, longest) for blocks in step.new_blocks for block in blocks]
    assert max(blocks) == num_step_blocks(limits) - 1


@pytest.mark.parametrize("limits", ALL_LIMITS)
def test_a_runner_takes_them_on_a_cache_of_one_step(llama: Path, limits: EngineLimits) -> None:
    torch.set_num_threads(1)
    runner = load_runner(llama, limits.with_blocks(num_step_blocks(limits)))
    widest, longest = (runner.run(step) for step in largest_steps(limits, VOCAB_SIZE))
    assert widest is not None
    assert longest is not None
    assert [len(widest.token_ids), len(longest.token_ids)] == [limits.max_num_seqs, 1]
    assert all(token_id >= 0 for token_id in widest.token_ids), "tables of repeated blocks hold finite numbers"
    assert widest.logprobs is not None
