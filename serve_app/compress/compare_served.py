"""Two models side by side where at least one is served at a URL: perplexity, KL, agreement, exact answers, speed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve_app.compress.evaluate import (
    Perplexity,
    TaskScore,
    kl_lower_bound,
    perplexity_of,
    score_answers,
    top1_agreement,
)
from serve_app.compress.local_model import LocalModel
from serve_app.compress.remote_model import RemoteModel
from serve_app.compress.speed import measure_speed
from serve_app.compress.texts import TaskExample
from serve_app.config.environment import read_environment
from serve_app.errors import ConfigError

MAX_ANSWER_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Side:
    """What was measured of one of the two."""

    name: str
    perplexity: Perplexity
    tasks: list[TaskScore]
    tokens_per_s: dict[int, float]  # by batch size; empty: not measured


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model beside its original."""

    original: Side
    model: Side
    top1_agreement: float
    kl_lower_bound: float  # by the most probable tokens, which is all that a server returns
    num_tokens: int

    @property
    def perplexity_increase(self) -> float:
        """As a share of the original's."""
        return self.model.perplexity.value / self.original.perplexity.value - 1


def is_url(place: str) -> bool:
    """Whether a model is named by a URL."""
    return place.startswith(("http://", "https://"))


def open_model(place: str, name: str | None) -> LocalModel | RemoteModel:
    """The model in a directory or at a URL. Raises ConfigError."""
    if is_url(place):
        return RemoteModel(place, name, read_environment().openai_api_key)
    if name is not None:
        raise ConfigError(f"a name ({name}) has no effect on the model in {place}; leave it out")
    return LocalModel(Path(place))


def compare_served(
    original: LocalModel | RemoteModel,
    model: LocalModel | RemoteModel,
    texts: Sequence[str],
    examples: Sequence[TaskExample],
    *,
    has_speed: bool,
) -> Comparison:
    """Both on the same texts, whole, and on the same tasks. Raises ConfigError."""
    scores, sides = [], []
    for one in (original, model):
        scores.append(one.score(texts))
        if not any(score.token_ids for score in scores[-1]):
            raise ConfigError("no text has two tokens; give longer ones")
        answers = one.answers([example.prompt for example in examples], MAX_ANSWER_TOKENS) if examples else []
        sides.append(
            Side(
                _name_of(one),
                perplexity_of(scores[-1]),
                score_answers(examples, answers),
                _speed_of(one) if has_speed else {},
            )
        )
    agreement = top1_agreement(scores[0], scores[1])
    kl = kl_lower_bound(scores[0], scores[1])
    return Comparison(sides[0], sides[1], agreement, kl, sides[0].perplexity.num_tokens)


def describe(comparison: Comparison) -> str:
    """A table for people."""
    sides = (comparison.original, comparison.model)
    lines = [
        f"| | {sides[0].name} | {sides[1].name} |",
        "| --- | --- | --- |",
        f"| perplexity | {_shown(sides[0].perplexity)} | {_shown(sides[1].perplexity)} "
        f"({comparison.perplexity_increase:+.2%}) |",
        f"| KL to the original, nats a token, at least | | {comparison.kl_lower_bound:.5f} |",
        f"| same next token | | {comparison.top1_agreement:.2%} |",
    ]
    for before, after in zip(*(side.tasks for side in sides), strict=True):
        cells = [f"{one.num_exact}/{one.num_examples}" for one in (before, after)]
        lines.append(f"| exact: {before.task} | {' | '.join(cells)} |")
    for batch_size in sides[0].tokens_per_s:
        rates = [f"{side.tokens_per_s[batch_size]:.0f}" for side in sides]
        lines.append(f"| tokens/s, batch {batch_size} | {' | '.join(rates)} |")
    return "\n".join([*lines, "", f"Measured on {comparison.num_tokens} tokens."])


def as_json(comparison: Comparison) -> str:
    """The same for programs."""
    content: dict[str, Any] = asdict(comparison) | {"perplexity_increase": comparison.perplexity_increase}
    return json.dumps(content, indent=2) + "\n"


def _speed_of(model: LocalModel | RemoteModel) -> dict[int, float]:
    if isinstance(model, RemoteModel):
        return model.measure_speed()
    return {one.batch_size: one.tokens_per_s for one in measure_speed(model)}


def _name_of(model: LocalModel | RemoteModel) -> str:
    return f"{model.name} at {model.url}" if isinstance(model, RemoteModel) else model.directory.name


def _shown(perplexity: Perplexity) -> str:
    return f"{perplexity.value:.4f} ± {perplexity.standard_error:.4f}"
