"""What a KV cache takes of this process's memory; what it holds is in attention/test_paged.py."""

import torch
from transformers import LlamaConfig

from serve_app.engine.kv_cache import KvCache
from serve_app.freed_memory import resident_bytes
from serve_app.models.transformers_model import TransformersStage
from serve_app.types.shards import ShardSpec

MIB = 1 << 20
BLOCK_SIZE, NUM_BLOCKS, HEAD_DIM = 16, 8192, 16
ONE_LAYER = ShardSpec(stage=1, num_stages=2, rank=0, num_ranks=1, first_layer=1, end_layer=2)


def test_on_cpu_it_takes_what_was_used_of_it() -> None:
    config = LlamaConfig(vocab_size=8, hidden_size=64, intermediate_size=8, num_hidden_layers=2, num_attention_heads=4)
    stage = TransformersStage(config, torch.bfloat16, ONE_LAYER)
    before = resident_bytes()
    cache = KvCache(stage, NUM_BLOCKS, BLOCK_SIZE, torch.device("cpu"))
    assert cache.num_bytes == 2 * NUM_BLOCKS * BLOCK_SIZE * 4 * HEAD_DIM * 2 == 32 * MIB
    assert resident_bytes() - before < 8 * MIB
    num_tokens = NUM_BLOCKS * BLOCK_SIZE // 2
    values = torch.ones(num_tokens, 4, HEAD_DIM, dtype=torch.bfloat16)
    cache.write(0, torch.arange(num_tokens), values, values)
    assert resident_bytes() - before > 12 * MIB  # 16 were written; others may free some meanwhile
    keys, _ = cache.read_run(0, num_tokens - 1, 2)
    assert keys[0, :, 0].eq(1).all()
    assert keys[0, :, 1].eq(0).all(), "what nobody has written is zero"
