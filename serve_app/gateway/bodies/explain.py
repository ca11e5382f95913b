"""Bodies and answers of explanations: which words an answer hangs on. An unknown key is an error."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from serve_app.gateway.bodies.inference import AnswerList, TokenUsage
from serve_app.gateway.bodies.openai import NaturalInt, PositiveInt, Priority
from serve_app.preprocessing.text_spans import Unit

MAX_STEPS = 512

Method = Literal["auto", "integrated_gradients", "occlusion"]
Replacement = Literal["auto", "mask", "unk", "pad", "remove", "zero"]
Output = Literal["logit", "probability"]
Part = Literal["input", "text_pair"]


class ExplainBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/explain`."""

    model: str | None = None
    input: str  # a text, or a generator's prompt
    text_pair: str | None = None  # the second text of a pair, for a model of pairs
    method: Method | None = None  # None: auto
    target: str | NaturalInt | None = None  # a label, or its index; of a generator: the answer's text
    against: str | None = None  # another model, asked the same
    unit: Unit | None = None  # what has a score; None: word
    replacement: Replacement | None = None  # what stands in a hidden word's place; None: auto
    output: Output | None = None  # of classifiers, what is explained; None: logit
    steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None  # of integrated gradients
    max_tokens: PositiveInt | None = None  # of a generator's own answer, where no target is given
    top_n: PositiveInt | None = None  # differences between two models that are listed
    priority: Priority | None = None  # the lowest number comes first; None: the key's
    user: str | None = None  # taken and without effect


class SpanScore(msgspec.Struct, frozen=True):
    """A word or token, its characters [start, end) in its text, and how much it adds to the explained value."""

    text: str
    start: int
    end: int
    score: float
    part: Part = "input"


class ModelExplanation(msgspec.Struct, frozen=True):
    """What one model's answer hangs on."""

    model: str
    method: Literal["integrated_gradients", "occlusion"]
    replacement: str
    target: str
    target_index: int | None  # of a label; None: of a generator
    output: Literal["logit", "probability", "logprob"]
    value: float  # of the text as it is
    baseline_value: float | None  # of the text with everything hidden; None: then nothing would be left
    convergence_delta: float | None  # of integrated gradients: all scores, less value - baseline_value
    text: str  # that the offsets of input are of: as the model's steps have changed it
    text_pair: str | None
    tokens: list[SpanScore]


class ScoreDifference(msgspec.Struct, frozen=True):
    """Characters that two models score differently."""

    text: str
    start: int
    end: int
    part: Part
    score: float
    against_score: float
    difference: float  # against_score - score


class Comparison(msgspec.Struct, frozen=True):
    """How far two models' scores agree."""

    rank_correlation: float | None  # Spearman's; None: a model scores everything the same, or there is one word only
    differences: list[ScoreDifference]  # the largest first


class ExplanationAnswer(AnswerList, frozen=True, kw_only=True):
    """The explanation of a model's answer, and of another's beside it."""

    model: str
    explanation: ModelExplanation
    against: ModelExplanation | None = None
    comparison: Comparison | None = None
    usage: TokenUsage
    object: str = "explanation"
