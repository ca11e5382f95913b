"""What explanations of all kinds of models share: what is asked, and scores as an answer shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.gateway.bodies.explain import ExplainBody, ModelExplanation, Output, Part, SpanScore
from serve_app.preprocessing.text_spans import TextSpan, Unit

PARTS: tuple[Part, Part] = ("input", "text_pair")


@dataclass(frozen=True, slots=True)
class Explained:
    """A model's explanation, and how many tokens it has read and written for it."""

    answer: ModelExplanation
    num_prompt_tokens: int
    num_output_tokens: int = 0


def unit_of(body: ExplainBody) -> Unit:
    """What gets a score."""
    return body.unit or "word"


def output_of(body: ExplainBody) -> Output:
    """What of a classifier is explained."""
    return body.output or "logit"


def span_scores(texts: Sequence[str], spans: Sequence[TextSpan], scores: Sequence[float]) -> list[SpanScore]:
    """Scores beside their words."""
    return [
        SpanScore(texts[span.part][span.start : span.end], span.start, span.end, score, PARTS[span.part])
        for span, score in zip(spans, scores, strict=True)
    ]
