"""Hashes of a prompt's beginnings."""

from collections.abc import Sequence
from itertools import pairwise

import pytest

from serve_app.backend.prompt_marks import RoutedPrompt, mark_ends


def prompt(token_ids: Sequence[int], **given: str) -> RoutedPrompt:
    return RoutedPrompt(token_ids, 4, **given)


def num_common(one: RoutedPrompt, two: RoutedPrompt) -> int:
    return sum(a == b for a, b in zip(one.marks.keys, two.marks.keys, strict=False))


def test_prompts_share_the_marks_of_whole_blocks_that_they_begin_with() -> None:
    longer, other = prompt(range(20)), prompt([*range(10), 99, *range(11, 20)])
    assert longer.marks.ends == [1, 2, 3, 4]  # the last token is always computed
    assert num_common(longer, prompt(range(13))) == 3
    assert num_common(longer, other) == 2
    assert num_common(longer, prompt([99, *range(1, 20)])) == 0


@pytest.mark.parametrize("num_tokens", [1, 4])
def test_a_prompt_of_less_than_a_block_and_a_token_has_nothing_to_go_by(num_tokens: int) -> None:
    short = prompt(range(num_tokens))
    assert short.marks.keys == []
    assert short.home_key == b""
    assert prompt(range(num_tokens), session="s").home_key


def test_a_key_is_of_all_tokens_before_its_mark() -> None:
    one, two = prompt([1, *range(2000)]), prompt([2, *range(2000)])
    assert num_common(one, two) == 0
    assert len(set(one.marks.keys)) == len(one.marks.keys)


def test_two_salts_have_no_key_and_no_session_in_common() -> None:
    mine, yours = prompt(range(40), salt="a", session="s"), prompt(range(40), salt="b", session="s")
    assert num_common(mine, yours) == 0
    assert mine.session_key != yours.session_key
    assert mine.session_key == prompt(range(8), salt="a", session="s").session_key


def test_what_no_encoding_has_is_hashed_all_the_same() -> None:
    assert prompt(range(40), salt="\udcff", session="\ud800").home_key


def test_the_home_of_a_conversation_stays_while_it_grows() -> None:
    first, later = prompt(range(70)), prompt(range(500))
    assert first.home_key == later.home_key
    assert first.home_key != prompt([9, *range(70)]).home_key


def test_marks_lie_where_those_of_a_longer_prompt_do_and_grow_few() -> None:
    ends = mark_ends(100_000)
    assert ends[:128] == list(range(1, 129))
    assert all(b - a <= max(1, a / 64) for a, b in pairwise(ends))
    assert len(ends) < 800
    for num_blocks in (0, 1, 127, 128, 129, 130, 256, 257, 260, 5000):
        assert mark_ends(num_blocks) == [end for end in ends if end <= num_blocks]


def test_nothing_is_hashed_before_it_is_asked_for_and_then_once() -> None:
    one = prompt(range(40))
    assert "marks" not in vars(one)
    assert one.marks is one.marks
