"""Attention over the paged cache against a plain one that loops over queries."""

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig

from serve_app.engine.attention.paged import PagedAttention, SequenceSpan
from serve_app.engine.attention.reference import attend_one
from serve_app.engine.kv_cache import KvCache, kv_block_bytes, kv_shape_of
from serve_app.models.transformers_model import TransformersStage
from serve_app.types.shards import ShardSpec

HEAD_DIM, BLOCK_SIZE, NUM_BLOCKS = 8, 4, 24
SCALING = 0.4
SECOND_STAGE = ShardSpec(stage=1, num_stages=2, rank=0, num_ranks=1, first_layer=2, end_layer=3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tensors are tiny


def make_cache(num_kv_heads: int) -> KvCache:
    """A cache of one layer, layer 2 of the model."""
    return KvCache(one_layer(num_kv_heads), NUM_BLOCKS, BLOCK_SIZE, torch.device("cpu"))


@cache
def one_layer(num_kv_heads: int) -> TransformersStage:
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=4 * HEAD_DIM,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=num_kv_heads,
    )
    return TransformersStage(config, torch.float32, SECOND_STAGE)


@dataclass(slots=True)
class Sequence:
    """Queries [H, L, Dh], keys and values [K, L, Dh] of a sequence, and the blocks that it has been given."""

    query: Tensor
    key: Tensor
    value: Tensor
    blocks: list[int]
    num_computed: int = 0


def make_sequence(length: int, num_kv_heads: int, blocks: list[int], seed: int) -> Sequence:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_kv_heads, length, HEAD_DIM)
    return Sequence(
        torch.randn(4, length, HEAD_DIM, generator=generator) * 2,
        torch.randn(shape, generator=generator),
        torch.randn(shape, generator=generator),
        blocks,
    )


def step(
    kv_cache: KvCache, parts: list[tuple[Sequence, int]], window: int | None = None, softcap: float | None = None
) -> list[Tensor]:
    """Run the next so many tokens of each sequence: outputs [q, H, Dh]."""
    slots: list[int] = []
    scattered: list[int] = []
    spans: list[SequenceSpan] = []
    for sequence, count in parts:
        first, end = sequence.num_computed, sequence.num_computed + count
        blocks = sequence.blocks[: -(-end // BLOCK_SIZE)]
        if first == 0:
            spans.append(SequenceSpan(len(slots), count, first))
        elif blocks == list(range(blocks[0], blocks[0] + len(blocks))):
            spans.append(SequenceSpan(len(slots), count, first, first_slot=blocks[0] * BLOCK_SIZE))
        else:
            spans.append(SequenceSpan(len(slots), count, first, first_gathered=len(scattered) * BLOCK_SIZE))
            scattered += blocks
        slots += [sequence.blocks[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE for place in range(first, end)]
    blocks_to_gather = torch.tensor(scattered) if scattered else None
    attention = PagedAttention(kv_cache, 2, torch.tensor(slots), blocks_to_gather, spans)
    query, key, value = (
        torch.cat([getattr(one, name)[:, one.num_computed : one.num_computed + count] for one, count in parts], dim=1)
        for name in ("query", "key", "value")
    )
    output = attention.attend(2, query, key, value, SCALING, window, softcap)
    for sequence, count in parts:
        sequence.num_computed += count
    return list(torch.split(output, [count for _, count in parts]))


def plain(sequence: Sequence, window: int | None, softcap: float | None) -> Tensor:
    """The same in float64, with all scores at once: [L, H, Dh]."""
    num_heads, length, _ = sequence.query.shape
    group = num_heads // sequence.key.shape[0]
    heads = [head // group for head in range(num_heads)]
    keys, values = sequence.key[heads].double(), sequence.value[heads].double()
    scores = torch.einsum("hqd,hkd->hqk", sequence.query.double(), keys) * SCALING
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    is_seen = [[0 <= q - k < (window or length) for k in range(length)] for q in range(length)]
    weights = scores.masked_fill(~torch.tensor(is_seen), -math.inf).softmax(-1)
    return torch.einsum("hqk,hkd->qhd", weights, values)


@pytest.mark.parametrize("softcap", [None, 1.5], ids=["plain", "softcap"])
@pytest.mark.parametrize("window", [None, 1, 5, 40], ids=lambda window: f"window {window}")
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("chunks", [[22], [1] * 22, [7, 8, 1, 1, 5], [4, 4, 14]], ids=str)
@pytest.mark.parametrize("blocks", [[17, 3, 22, 4, 0, 9], list(range(5, 11))], ids=["shuffled", "a run"])
def test_chunks_over_blocks_give_what_plain_attention_gives(
    blocks: list[int], chunks: list[int], num_kv_heads: int, window: int | None, softcap: float | None
) -> None:
    kv_cache = make_cache(num_kv_heads)
    sequence = make_sequence(22, num_kv_heads, blocks, seed=0)
    pieces = [step(kv_cache, [(sequence, count)], window, softcap)[0] for count in chunks]
    torch.testing.assert_close(torch.cat(pieces), plain(sequence, window, softcap).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 5])
def test_where_the_blocks_lie_changes_no_bit(window: int | None) -> None:
    outputs = []
    for blocks in ([3, 4, 5, 6, 7, 8], [17, 3, 22, 4, 0, 9]):
        kv_cache, sequence = make_cache(2), make_sequence(22, 2, blocks, seed=0)
        mate = make_sequence(22, 2, [10, 11, 12, 13, 14, 15], seed=1)
        pieces = [step(kv_cache, [(sequence, count), (mate, count)], window)[0] for count in [7, 8, 1, 1, 5]]
        outputs.append(torch.cat(pieces))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("softcap", [None, 1.5], ids=["plain", "softcap"])
@pytest.mark.parametrize("window", [None, 5])
def test_batch_mates_change_no_bit_of_a_sequence(window: int | None, softcap: float | None) -> None:
    tables = ([17, 3, 22, 4, 0, 9], [1, 23, 2], [11, 5, 14, 6])
    lengths = (22, 10, 15)

    def make() -> list[Sequence]:
        return [
            make_sequence(length, 2, list(table), seed=length) for length, table in zip(lengths, tables, strict=True)
        ]

    kv_cache, together = make_cache(2), make()
    outputs: list[list[Tensor]] = [[], [], []]
    for counts in ((9, 4, 1), (1, 1, 5), (12, 5, 9)):
        for pieces, piece in zip(
            outputs, step(kv_cache, list(zip(together, counts, strict=True)), window, softcap), strict=True
        ):
            pieces.append(piece)
    for sequence, chunks, pieces in zip(make(), ((9, 1, 12), (4, 1, 5), (1, 5, 9)), outputs, strict=True):
        alone = make_cache(2)
        expected = [step(alone, [(sequence, count)], window, softcap)[0] for count in chunks]
        assert torch.equal(torch.cat(pieces), torch.cat(expected))
        torch.testing.assert_close(torch.cat(pieces), plain(sequence, window, softcap).float(), rtol=1e-5, atol=1e-5)


def test_what_a_block_held_before_is_not_seen() -> None:
    kv_cache = make_cache(2)
    kv_cache.keys[0].fill_(math.nan)  # the rest of a block in use, too
    kv_cache.values[0].fill_(math.nan)
    sequence = make_sequence(9, 2, [3, 1, 2], seed=0)
    pieces = [step(kv_cache, [(sequence, count)])[0] for count in (3, 3, 1, 1, 1)]
    torch.testing.assert_close(torch.cat(pieces), plain(sequence, None, None).float(), rtol=1e-5, atol=1e-5)


def test_a_cache_holds_the_heads_and_layers_of_its_shard() -> None:
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=32,
        intermediate_size=8,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
    )
    shard = ShardSpec(stage=1, num_stages=2, rank=1, num_ranks=2, first_layer=1, end_layer=4)
    stage = TransformersStage(config, torch.float32, shard)
    kv = kv_shape_of(stage)
    assert (kv.num_heads, kv.head_dim) == (2, 16)
    kv_cache = KvCache(stage, 5, 4, torch.device("cpu"))
    tensors = [*kv_cache.keys, *kv_cache.values]
    assert {tuple(tensor.shape) for tensor in tensors} == {(20, 2, 16)}
    assert sum(tensor.nbytes for tensor in tensors) == 5 * kv_block_bytes(stage, 4)


def test_a_sink_takes_its_share_of_the_attention_and_values_may_be_narrower() -> None:
    generator = torch.Generator().manual_seed(3)
    query, keys = torch.randn(4, 3, 8, generator=generator), torch.randn(5, 2, 8, generator=generator)
    values, sinks = torch.randn(5, 2, 6, generator=generator), torch.tensor([0.5, -1.0, 2.0, 0.0])
    got = attend_one(query, keys, values, SCALING, None, None, sinks)
    scores = query @ keys.transpose(0, 1).repeat_interleave(2, 0).transpose(1, 2) * SCALING  # [H, q, L]
    seen = torch.ones(3, 5, dtype=torch.bool).tril(2)
    weights = scores.masked_fill(~seen, float("-inf")).exp()
    shares = weights / (weights.sum(-1, keepdim=True) + sinks.exp()[:, None, None])
    expected = shares @ values.transpose(0, 1).repeat_interleave(2, 0)
    torch.testing.assert_close(got, expected.transpose(0, 1))


def test_a_chunk_s_mask_is_the_lower_right_to_the_bit() -> None:
    query, key = torch.randn(8, 5, 16), torch.randn(22, 2, 16)
    mask = torch.arange(22)[None] <= torch.arange(17, 22)[:, None]
    expected = scaled_dot_product_attention(
        query[None], *(key.transpose(0, 1)[None],) * 2, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    found = attend_one(query, key, key, 0.3, None, None)
    assert torch.equal(found, expected[0].transpose(0, 1))
