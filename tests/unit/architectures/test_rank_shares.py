"""What one tensor rank holds, where ranks are fewer than the key-value heads and where they are more."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.architectures.head_sizes import HeadSizes
from serve_app.architectures.rank_shares import (
    can_hold_kv_heads,
    even_range,
    heads_of_rank,
    kv_head_range,
    kv_heads_of_layer,
    kv_heads_on_rank,
    ranks_of_kv_head,
    widest_on_rank,
)

NUM_HEADS = st.sampled_from([1, 2, 3, 4, 6, 8, 12])


@given(size=st.integers(0, 1000), num_ranks=st.integers(1, 16))
def test_even_ranges_follow_each_other_and_hold_everything(size: int, num_ranks: int) -> None:
    ranges = [even_range(size, rank, num_ranks) for rank in range(num_ranks)]
    assert [place for start, end in ranges for place in range(start, end)] == list(range(size))
    assert {end - start for start, end in ranges} <= {size // num_ranks, -(-size // num_ranks)}


@given(num_kv_heads=NUM_HEADS, group=NUM_HEADS, num_ranks=NUM_HEADS)
def test_a_rank_holds_the_key_value_heads_that_its_query_heads_attend_to_and_no_others(
    num_kv_heads: int, group: int, num_ranks: int
) -> None:
    num_heads = num_kv_heads * group
    if num_heads % num_ranks or not can_hold_kv_heads(num_kv_heads, num_ranks):
        return
    holders = [0] * num_kv_heads
    for rank in range(num_ranks):
        first, end = kv_head_range(num_kv_heads, rank, num_ranks)
        queries = range(*even_range(num_heads, rank, num_ranks))
        assert sorted({query // group for query in queries}) == list(range(first, end))
        assert len(queries) % (end - first) == 0
        assert end - first == kv_heads_on_rank(num_kv_heads, num_ranks)
        for head in range(first, end):
            holders[head] += 1
    assert set(holders) == {ranks_of_kv_head(num_kv_heads, num_ranks)}


def test_ranks_that_would_need_parts_of_two_groups_cannot_hold_the_heads() -> None:
    assert [ranks for ranks in range(1, 13) if can_hold_kv_heads(4, ranks)] == [1, 2, 4, 8, 12]


def test_the_widest_kind_of_layers_on_a_rank_may_not_be_the_models_widest() -> None:
    many_small, few_large = HeadSizes(32, 16, 256, 256), HeadSizes(32, 4, 512, 512)
    kinds = (many_small, few_large)
    assert [widest_on_rank(kinds, ranks) for ranks in (1, 4, 16)] == [many_small, many_small, few_large]
    assert heads_of_rank(few_large, 16) == HeadSizes(2, 1, 512, 512)
    assert heads_of_rank(many_small, 4) == HeadSizes(8, 4, 256, 256)


def test_the_heads_of_a_layer_are_told_by_its_matrices() -> None:
    sliding = HeadSizes(32, 16, 256, 256)
    assert kv_heads_of_layer(sliding, num_query_rows=32 * 256, num_key_rows=16 * 256) == 16
    assert kv_heads_of_layer(sliding, num_query_rows=32 * 512, num_key_rows=4 * 512) == 4
