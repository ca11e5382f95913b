"""Tokens of reasoning, as answers are taken apart."""

import pytest

from serve_app.preprocessing.answers.parts import AnswerParts, CallDelta
from serve_app.preprocessing.answers.reasoning_count import ReasoningCount

TEXTS = ["<think>", "so", "</", "think>", "\n\n", "yes", ""]


def counted(*fed: tuple[list[int], AnswerParts], is_ended: bool = False) -> int:
    count = ReasoningCount("</think>", TEXTS.__getitem__)
    for place, (token_ids, parts) in enumerate(fed, start=1):
        count.feed(token_ids, parts, is_ended=is_ended and place == len(fed))
    return count.num_tokens


NOTHING, SO, YES = AnswerParts(), AnswerParts(reasoning="so"), AnswerParts("yes")
CALL = AnswerParts(calls=[CallDelta(0, "a", "f")])


@pytest.mark.parametrize("more", [YES, CALL])
def test_marks_count_and_what_stands_behind_them_does_not(more: AnswerParts) -> None:
    assert counted(([0], NOTHING), ([1], SO), ([2], NOTHING), ([3], NOTHING), ([4], NOTHING), ([5], more)) == 4
    assert counted(([0, 1, 2, 3, 4, 5], AnswerParts("yes", "so"))) == 4
    assert counted(([0, 1, 2, 3, 4, 5], AnswerParts("yes", "so")), ([5, 5], YES)) == 4


def test_reasoning_that_does_not_end_counts_whole() -> None:
    assert counted(([0], NOTHING), ([1], SO), ([1, 6], NOTHING), is_ended=True) == 4


def test_an_answer_without_reasoning_has_none() -> None:
    assert counted(([5], YES), ([1], YES), is_ended=True) == 0
    assert counted(([6], NOTHING), is_ended=True) == 0
