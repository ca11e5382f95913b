"""Decoding straight from the paged cache in two kernels: parts of each sequence's keys, then their sum.

Online softmax over tiles (FlashAttention, arXiv:2205.14135), keys split among programs (Flash-Decoding). The parts'
length depends on max_model_len alone, so that a sequence's numbers do not depend on its batch-mates.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


# What changes from step to step compiles nothing anew.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["scaling", "softcap", "query_row_stride", "table_stride", "num_parts"],
    do_not_specialize_on_alignment=["lengths", "tables"],
)
def decode_parts(
    query,  # [B, H, Dh]
    keys,  # [num_slots, K, Dh]
    values,  # [num_slots, K, Dv]
    tables,  # [B, N] int64
    lengths,  # [B] int64
    sums,  # [B, H, num_parts, Dv] float32, written: weighted values
    peaks,  # [B, H, num_parts] float32, written: the largest score
    weights,  # [B, H, num_parts] float32, written: the sum of the weights
    scaling,
    softcap,
    query_row_stride,
    query_head_stride,
    table_stride,
    num_parts,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # heads that share a key-value head
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PART: tl.constexpr,  # keys of a program
    TILE: tl.constexpr,  # of them, at a time
    WINDOW: tl.constexpr,  # 0: none
    HAS_SOFTCAP: tl.constexpr,
    GROUP_WIDTH: tl.constexpr,  # powers of two that have room for GROUP, HEAD_DIM and VALUE_DIM
    HEAD_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
):
    row, kv_head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    seen_from = length * 0
    if WINDOW > 0:
        seen_from = tl.maximum(length - WINDOW, 0)
    first = part * PART
    if (first < length) & (first + PART > seen_from):
        heads = tl.arange(0, GROUP_WIDTH)
        head_dims, value_dims = tl.arange(0, HEAD_WIDTH), tl.arange(0, VALUE_WIDTH)
        head = kv_head * GROUP + heads  # of all
        has_head = heads < GROUP
        queries = tl.load(
            query + row * query_row_stride + head[:, None] * query_head_stride + head_dims[None],
            mask=has_head[:, None] & (head_dims[None] < HEAD_DIM),
            other=0.0,
        )  # [G, Dh]
        table = tables + row * table_stride
        peak = tl.full([GROUP_WIDTH], float("-inf"), tl.float32)
        weight = tl.zeros([GROUP_WIDTH], tl.float32)
        total = tl.zeros([GROUP_WIDTH, VALUE_WIDTH], tl.float32)
        begin = tl.maximum(seen_from - first, 0) // TILE * TILE
        end = tl.minimum(length - first, PART)
        for offset in range(begin, end, TILE):
            positions = first + offset + tl.arange(0, TILE)
            is_seen = (positions < length) & (positions >= seen_from)
            blocks = tl.load(table + positions // BLOCK_SIZE, mask=is_seen, other=0)
            slots = (blocks * BLOCK_SIZE + positions % BLOCK_SIZE) * NUM_KV_HEADS + kv_head
            tile_keys = tl.load(
                keys + slots[None] * HEAD_DIM + head_dims[:, None],
                mask=is_seen[None] & (head_dims[:, None] < HEAD_DIM),
                other=0.0,
            )  # [Dh, TILE]
            scores = tl.dot(queries, tile_keys, input_precision="ieee") * scaling  # [G, TILE] float32
            if HAS_SOFTCAP:
                scores = (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0) * softcap  # tanh
            scores = tl.where(is_seen[None], scores, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(scores, 1))
            base = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # a tile of which nothing is seen
            shrink = tl.exp(peak - base)
            shares = tl.exp(scores - base[:, None])
            tile_values = tl.load(
                values + slots[:, None] * VALUE_DIM + value_dims[None],
                mask=is_seen[:, None] & (value_dims[None] < VALUE_DIM),
                other=0.0,
            )  # [TILE, Dv]
            weight = weight * shrink + tl.sum(shares, 1)
            added = tl.dot(shares.to(tile_values.dtype), tile_values, input_precision="ieee")
            total = total * shrink[:, None] + added
            peak = new_peak
        place = (row * NUM_KV_HEADS * GROUP + head) * num_parts + part
        tl.store(peaks + place, peak, mask=has_head)
        tl.store(weights + place, weight, mask=has_head)
        tl.store(
            sums + place[:, None] * VALUE_DIM + value_dims[None],
            total,
            mask=has_head[:, None] & (value_dims[None] < VALUE_DIM),
        )


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_parts"], do_not_specialize_on_alignment=["lengths"]
)
def join_parts(
    sums,  # as decode_parts has written them
    peaks,
    weights,
    sinks,  # [H], read where HAS_SINKS
    lengths,  # [B] int64
    output,  # [B, H, Dv], written
    num_parts,
    NUM_HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PART: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + row)
    first_part = length * 0
    if WINDOW > 0:
        first_part = tl.maximum(length - WINDOW, 0) // PART
    end_part = (length + PART - 1) // PART
    value_dims = tl.arange(0, VALUE_WIDTH)
    has_dim = value_dims < VALUE_DIM
    peak = tl.full([1], float("-inf"), tl.float32)
    weight = tl.zeros([1], tl.float32)
    if HAS_SINKS:
        peak = tl.maximum(peak, tl.load(sinks + head).to(tl.float32))
        weight += 1.0
    total = tl.zeros([VALUE_WIDTH], tl.float32)
    place = (row * NUM_HEADS + head) * num_parts
    for part in range(first_part, end_part):
        part_peak = tl.load(peaks + place + part)
        new_peak = tl.maximum(peak, part_peak)
        shrink, share = tl.exp(peak - new_peak), tl.exp(part_peak - new_peak)
        weight = weight * shrink + tl.load(weights + place + part) * share
        added = tl.load(sums + (place + part) * VALUE_DIM + value_dims, mask=has_dim, other=0.0)
        total = total * shrink + added * share
        peak = new_peak
    result = total / weight
    tl.store(
        output + (row * NUM_HEADS + head) * VALUE_DIM + value_dims, result.to(output.dtype.element_ty), mask=has_dim
    )
