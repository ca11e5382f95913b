"""What a copy is known to hold, and what is forgotten of it."""

import random

from serve_app.backend.held_prefixes import HeldPrefixes
from serve_app.backend.prompt_marks import Marks, RoutedPrompt

ANY = 10**9


def marks_of(*token_ids: int) -> Marks:
    """One block for each token, and one that is always computed."""
    return RoutedPrompt([*token_ids, 0], 1).marks


def test_a_prompt_is_held_up_to_where_it_differs() -> None:
    held = HeldPrefixes()
    held.add(marks_of(1, 2, 3), ANY, ANY)
    assert held.num_held(marks_of(1, 2, 3, 4, 5)) == 3
    assert held.num_held(marks_of(1, 2)) == 2
    assert held.num_held(marks_of(1, 9, 3)) == 1
    assert held.num_held(marks_of(9)) == 0
    assert held.num_held(marks_of()) == 0


def test_what_was_sent_last_stays_and_its_end_goes_first() -> None:
    held = HeldPrefixes()
    held.add(marks_of(1, 2, 3), 4, ANY)
    held.add(marks_of(1, 5), 4, ANY)
    held.add(marks_of(7), 4, ANY)
    assert held.num_blocks == 4
    assert held.num_held(marks_of(1, 2, 3)) == 2
    assert held.num_held(marks_of(1, 5)) == 2
    assert held.num_held(marks_of(7)) == 1


def test_neither_blocks_nor_marks_are_more_than_allowed_and_beginnings_are_known_where_ends_are() -> None:
    draw, held = random.Random(0), HeldPrefixes()
    sent = []
    for _ in range(300):
        sent.append(marks_of(*(draw.randrange(3) for _ in range(draw.randrange(300)))))
        held.add(sent[-1], 500, 200)
        assert held.num_blocks <= 500
        assert len(held) <= 200
    for marks in sent:
        is_known = [key in held._blocks for key in marks.keys]
        assert is_known == sorted(is_known, reverse=True)
        assert held.num_held(marks) == ([0, *marks.ends])[sum(is_known)]
    assert held.num_blocks == sum(held._blocks.values())
