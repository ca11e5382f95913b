"""Blocks of the KV cache: given out once, taken back whole."""

import pytest

from serve_app.errors import InternalError
from serve_app.scheduling.block_manager import BlockManager, extend_keys


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_part_of_a_block_counts_as_a_block(num_tokens: int, num_blocks: int) -> None:
    assert BlockManager(num_blocks=8, block_size=4).num_blocks_for(num_tokens) == num_blocks


def test_a_table_grows_only_by_what_is_missing() -> None:
    blocks = BlockManager(num_blocks=4, block_size=4)
    table: list[int] = []
    blocks.grow(table, 3)
    blocks.grow(table, 4)
    assert (table, blocks.num_free) == ([0], 3)
    blocks.grow(table, 9)
    assert (table, blocks.num_free) == ([0, 1, 2], 1)


def test_tables_never_share_a_block() -> None:
    blocks = BlockManager(num_blocks=5, block_size=2)
    first: list[int] = []
    second: list[int] = []
    for num_tokens in (1, 3, 5):
        blocks.grow(first, num_tokens)
        blocks.grow(second, num_tokens - 1)
    assert sorted(first + second) == list(range(5))


def test_a_table_can_grow_to_the_last_block_and_no_further() -> None:
    blocks = BlockManager(num_blocks=3, block_size=4)
    table: list[int] = []
    blocks.grow(table, 4)
    assert blocks.can_grow(table, 12)
    assert not blocks.can_grow(table, 13)
    blocks.grow(table, 12)
    assert blocks.can_grow(table, 12)
    assert not blocks.can_grow([], 1)


def test_a_released_table_is_empty_and_its_blocks_are_given_out_again() -> None:
    blocks = BlockManager(num_blocks=3, block_size=1)
    table: list[int] = []
    blocks.grow(table, 3)
    blocks.release(table)
    assert (table, blocks.num_free) == ([], 3)
    blocks.grow(table, 3)
    assert sorted(table) == [0, 1, 2]


def test_a_table_goes_on_in_memory_while_there_is_other_room_for_others() -> None:
    blocks = BlockManager(num_blocks=64, block_size=2)
    first, second, third = list[int](), list[int](), list[int]()
    blocks.grow(first, 4, num_tokens_to_come=16)
    blocks.grow(second, 4, num_tokens_to_come=16)
    for num_tokens in range(5, 21):
        for table in (first, second):
            blocks.grow(table, num_tokens, num_tokens_to_come=20 - num_tokens)
    assert first == list(range(10))
    assert second == list(range(10, 20))
    blocks.release(first)
    blocks.grow(third, 20)
    assert third == list(range(10))
    blocks.check([second, third])


def test_what_is_left_to_somebody_is_taken_when_nothing_else_is_there() -> None:
    blocks = BlockManager(num_blocks=8, block_size=1)
    first, second = list[int](), list[int]()
    blocks.grow(first, 2, num_tokens_to_come=4)
    blocks.grow(second, 5)
    assert (len(second), blocks.num_free) == (5, 1)
    blocks.grow(first, 3)
    assert len({*first, *second}) == 8
    blocks.check([first, second])
    for table in (first, second):
        blocks.release(table)
    blocks.grow(first, 8)
    assert first == list(range(8))


def test_nothing_stays_reserved_for_a_table_that_had_to_go_on_elsewhere() -> None:
    blocks = BlockManager(num_blocks=16, block_size=1)
    first, second, third = list[int](), list[int](), list[int]()
    blocks.grow(first, 2, num_tokens_to_come=6)
    blocks.grow(second, 8)
    blocks.grow(third, 1)  # has to take what was left to the first
    assert third == [2]
    blocks.grow(first, 3, num_tokens_to_come=1)
    for table in (first, second, third):
        blocks.release(table)
    blocks.grow(third, 16)
    assert third == list(range(16))


def test_prefixes_give_way_to_a_run_and_not_to_all_that_may_come() -> None:
    blocks = BlockManager(num_blocks=64, block_size=2)
    for start in range(4):
        blocks.release(filled(blocks, list(range(100 * start, 100 * start + 32))))
    table: list[int] = []
    blocks.grow(table, 20, num_tokens_to_come=1000)
    assert table == list(range(table[0], table[0] + 10))
    num_kept = sum(len(blocks.find(keys_of(list(range(100 * start, 100 * start + 32))))) for start in range(4))
    assert num_kept >= 64 - 10 - 32
    blocks.check([table])


def test_the_check_passes_when_every_block_is_free_or_in_one_table() -> None:
    blocks = BlockManager(num_blocks=4, block_size=1)
    table: list[int] = []
    blocks.grow(table, 2)
    blocks.check([table])
    blocks.check([table, []])


def test_the_check_finds_a_block_that_nobody_holds() -> None:
    blocks = BlockManager(num_blocks=4, block_size=1)
    blocks.grow([], 1)
    with pytest.raises(InternalError, match=r"lost=\[0\] doubled=\[\] of 4"):
        blocks.check([])


def test_the_check_finds_a_block_that_two_hold() -> None:
    blocks = BlockManager(num_blocks=4, block_size=1)
    table: list[int] = []
    blocks.grow(table, 2)
    with pytest.raises(InternalError, match=r"lost=\[\] doubled=\[1\]"):
        blocks.check([table, [1]])
    blocks.release(list(table))
    with pytest.raises(InternalError, match=r"doubled=\[0, 1\]"):
        blocks.check([table])


def keys_of(token_ids: list[int], salt: str = "") -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, token_ids, len(token_ids) // 2, 2, salt)
    return keys


def filled(blocks: BlockManager, token_ids: list[int], salt: str = "") -> list[int]:
    """A table of full blocks that others may find."""
    table = list[int]()
    blocks.grow(table, len(token_ids))
    for block, key in zip(table, keys_of(token_ids, salt), strict=True):
        blocks.share(block, key)
    return table


def test_a_key_is_of_all_tokens_up_to_its_block_and_of_the_salt() -> None:
    keys = keys_of([1, 2, 3, 4])
    assert keys == keys_of([1, 2, 3, 4, 5, 6])[:2]
    assert keys[1] not in keys_of([9, 2, 3, 4])
    assert not set(keys) & set(keys_of([1, 2, 3, 4], "somebody"))
    longer = keys_of([1, 2])
    extend_keys(longer, [1, 2, 3, 4], 2, 2, "")
    assert longer == keys


def test_a_held_prefix_is_found_and_given_back_when_its_last_holder_lets_go() -> None:
    blocks = BlockManager(num_blocks=4, block_size=2)
    first = filled(blocks, [1, 2, 3, 4])
    found = blocks.find(keys_of([1, 2, 3, 4, 5, 6]))
    assert (found, blocks.num_unheld(found)) == (first, 0)
    second: list[int] = []
    blocks.hold(second, found)
    blocks.release(first)
    blocks.check([second])
    assert blocks.num_free == 2
    blocks.release(second)
    assert blocks.num_free == 4
    assert blocks.num_unheld(blocks.find(keys_of([1, 2, 3, 4]))) == 2
    blocks.check([])


def test_memory_is_taken_from_what_was_used_longest_ago_and_from_the_end_of_a_prefix_first() -> None:
    blocks = BlockManager(num_blocks=4, block_size=2)
    for tokens in ([1, 2, 3, 4], [5, 6, 7, 8]):
        blocks.release(filled(blocks, tokens))
    again: list[int] = []
    blocks.hold(again, blocks.find(keys_of([1, 2, 3, 4])))
    blocks.release(again)  # used later than the other one now
    table: list[int] = []
    blocks.grow(table, 2)
    assert len(blocks.find(keys_of([1, 2, 3, 4]))) == 2
    assert len(blocks.find(keys_of([5, 6, 7, 8]))) == 1
    blocks.check([table])


def test_the_same_block_computed_twice_is_kept_once() -> None:
    blocks = BlockManager(num_blocks=4, block_size=2)
    first, second = filled(blocks, [1, 2]), filled(blocks, [1, 2])
    assert blocks.find(keys_of([1, 2])) == first
    blocks.release(second)
    blocks.release(first)
    blocks.check([])
    assert blocks.num_free == 4


def test_what_is_forgotten_is_not_found_though_it_is_held() -> None:
    blocks = BlockManager(num_blocks=4, block_size=2)
    table = filled(blocks, [1, 2, 3, 4])
    blocks.forget(table)
    assert blocks.find(keys_of([1, 2, 3, 4])) == []
    blocks.release(table)
    blocks.check([])


def test_a_joined_table_is_a_run_that_takes_its_own_keys_with_it_and_leaves_those_of_others() -> None:
    blocks = BlockManager(num_blocks=16, block_size=2)
    shared = filled(blocks, [1, 2, 3, 4])
    table: list[int] = []
    blocks.hold(table, shared)
    blocks.grow([], 6)  # somebody else's
    blocks.grow(table, 8)
    old = list(table)
    own = keys_of([1, 2, 3, 4, 5, 6])[2]
    blocks.share(old[2], own)
    assert not blocks.is_run(table)
    copies = blocks.join(table, num_tokens_to_come=4)
    assert blocks.is_run(table)
    assert copies == list(zip(old, table, strict=True))
    assert blocks.find(keys_of([1, 2, 3, 4, 5, 6])) == [*shared, table[2]]
    blocks.grow(table, 12)
    assert blocks.is_run(table)
    assert blocks.num_free == 16 - 2 - 3 - 6


def test_nothing_is_joined_where_no_run_can_be_had() -> None:
    blocks = BlockManager(num_blocks=7, block_size=1)
    parts = [list[int]() for _ in range(7)]
    for part in parts:
        blocks.grow(part, 1)
    for index in (1, 3, 5):
        blocks.release(parts[index])
    table: list[int] = []
    blocks.grow(table, 2)
    before = list(table)
    assert blocks.join(table, 0) == []
    assert table == before
    blocks.check([table, *(part for part in parts if part)])
