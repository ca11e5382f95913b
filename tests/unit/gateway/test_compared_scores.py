"""Where two explanations of one text differ, whatever their tokenizers make of it."""

import numpy as np
import pytest

from serve_app.gateway.bodies.explain import ModelExplanation, Part, SpanScore
from serve_app.gateway.calls.compared_scores import compare, rank_correlation

TEXT, PAIR = "unhappy they are", "why"


def explanation(*scores: tuple[int, int, float], pair: float = 0.0) -> ModelExplanation:
    def token(part: Part, text: str, start: int, end: int, score: float) -> SpanScore:
        return SpanScore(text[start:end], start, end, score, part)

    tokens = [token("input", TEXT, *one) for one in scores] + [token("text_pair", PAIR, 0, 3, pair)]
    return ModelExplanation(
        model="m",
        method="occlusion",
        replacement="unk",
        target="x",
        target_index=0,
        output="logit",
        value=0.0,
        baseline_value=None,
        convergence_delta=None,
        text=TEXT,
        text_pair=PAIR,
        tokens=tokens,
    )


def test_scores_of_tokens_that_are_cut_differently_are_added_up_between_common_beginnings() -> None:
    one = explanation((0, 2, 1.0), (2, 7, 2.0), (8, 12, 0.5), (13, 16, -1.0), pair=1.0)
    two = explanation((0, 3, 4.0), (3, 12, 1.0), (13, 16, -3.0), pair=1.5)
    found = compare(one, two, None).differences
    assert [(piece.part, piece.text, piece.score, piece.against_score) for piece in found] == [
        ("input", "are", -1.0, -3.0),
        ("input", "unhappy they", 3.5, 5.0),
        ("text_pair", "why", 1.0, 1.5),
    ]
    assert [piece.difference for piece in found] == [-2.0, 1.5, 0.5]
    assert len(compare(one, two, 2).differences) == 2


def test_a_text_that_only_one_tokenizer_sees_the_beginning_of_is_compared_too() -> None:
    one, two = explanation((0, 7, 1.0), (8, 12, 2.0)), explanation((2, 7, 3.0), (8, 12, 2.5))
    pieces = {piece.text: (piece.score, piece.against_score) for piece in compare(one, two, None).differences}
    assert pieces == {"unhappy": (1.0, 3.0), "they": (2.0, 2.5), "why": (0.0, 0.0)}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [10, 20, 90], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 1, 2, 3], [1, 2, 3, 4], 0.9486832980505138),  # scipy.stats.spearmanr
        ([1, 1, 1], [1, 2, 3], None),
        ([4], [5], None),
    ],
)
def test_ranks_are_correlated_as_spearman_does(first: list[float], second: list[float], expected: float | None) -> None:
    found = rank_correlation(np.array(first, dtype=float), np.array(second, dtype=float))
    assert found == (None if expected is None else pytest.approx(expected))
