"""Where two models' explanations of one text differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.gateway.bodies.explain import Comparison, ModelExplanation, Part, ScoreDifference, SpanScore

_DEFAULT_DIFFERENCES = 5


def compare(first: ModelExplanation, second: ModelExplanation, num_differences: int | None) -> Comparison:
    """Compare the scores of the smallest pieces of the text at whose beginnings both have a word or token begin.

    Two tokenizers may cut a text differently; the scores of what lies in one piece are added up.
    """
    pieces = _common_pieces(first.tokens, second.tokens)
    own, other = (np.array([getattr(piece, side) for piece in pieces]) for side in ("score", "against_score"))
    order = np.argsort(-np.abs(other - own), kind="stable")[: num_differences or _DEFAULT_DIFFERENCES]
    texts: dict[Part, str] = {"input": first.text, "text_pair": first.text_pair or ""}
    differences = []
    for index in order.tolist():
        piece = pieces[index]
        text = texts[piece.part][piece.start : piece.end]
        gap = piece.against_score - piece.score
        differences.append(
            ScoreDifference(text, piece.start, piece.end, piece.part, piece.score, piece.against_score, gap)
        )
    return Comparison(rank_correlation(own, other), differences)


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Spearman's: both [N] -> -1..1, ties at their mean rank; None where either has no order."""
    one, two = _ranks(first), _ranks(second)
    one, two = one - one.mean(), two - two.mean()
    scale = float(np.sqrt((one**2).sum() * (two**2).sum()))
    return float((one * two).sum()) / scale if scale else None


@dataclass(slots=True)
class _Piece:
    part: Part
    start: int
    end: int
    score: float = 0.0
    against_score: float = 0.0


def _common_pieces(first: Sequence[SpanScore], second: Sequence[SpanScore]) -> list[_Piece]:
    def starts(tokens: Sequence[SpanScore]) -> set[tuple[Part, int]]:
        return {(token.part, token.start) for token in tokens}

    common = starts(first) & starts(second)
    pieces: list[_Piece] = []
    marked = [(token, False) for token in first] + [(token, True) for token in second]
    for token, is_other in sorted(marked, key=lambda one: (one[0].part, one[0].start, one[1])):
        begun = (pieces[-1].part, pieces[-1].start) if pieces else None
        is_next = begun is None or begun[0] != token.part or (token.part, token.start) in common
        if is_next and begun != (token.part, token.start):
            pieces.append(_Piece(token.part, token.start, token.end))
        piece = pieces[-1]
        piece.end = max(piece.end, token.end)
        if is_other:
            piece.against_score += token.score
        else:
            piece.score += token.score
    return pieces


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """values [N] -> their places in order [N], equal ones at the mean of theirs."""
    _unique, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = ends - (counts - 1) / 2
    return means[places]
