"""Steps in a row: what they are called, whether they fit, and running them."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from serve_app.config.model import ModelConfig
from serve_app.config.steps import StepConfig
from serve_app.errors import ConfigError, UnprocessableError
from serve_app.preprocessing.answer_steps import LabelNames, Sigmoid, Softmax, Threshold, TopK
from serve_app.preprocessing.chat_template import ChatTemplateRenderer
from serve_app.preprocessing.text_steps import (
    ChainStep,
    ChatTemplate,
    CollapseWhitespace,
    Lowercase,
    NormalizeUnicode,
    RedactPii,
    SplitSentences,
    StripHtml,
    Tokenize,
    Truncate,
)
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.preprocessing.user_steps import UserAnswerStep, UserTextStep, users_class_problem
from serve_app.types.chains import ChainOutcome, ChainValue, Redaction, StepTrace

MAX_CHARS = 16_000_000  # of what a step makes
MAX_TEXTS = 100_000

_STEPS: dict[str, Callable[..., ChainStep]] = {
    "normalize_unicode": NormalizeUnicode,
    "lowercase": Lowercase,
    "strip_html": StripHtml,
    "collapse_whitespace": CollapseWhitespace,
    "truncate": Truncate,
    "split_sentences": SplitSentences,
    "redact_pii": RedactPii,
    "softmax": Softmax,
    "sigmoid": Sigmoid,
    "top_k": TopK,
    "threshold": Threshold,
}
_OF_A_MODEL = ("tokenize", "chat_template", "label_names")  # they need its files
_ANSWER_KINDS = ("numbers", "tensors", "labels")
_LAST_KINDS = {"generate": ("text", "prompt")}  # before a model, by its task
_ENCODED_KINDS = ("text", "token_ids")


@dataclass(frozen=True, slots=True)
class ChainModel:
    """The model that steps stand before or after."""

    directory: Path
    labels: Sequence[str] = ()  # by output index; empty: its files name none
    renderer: ChatTemplateRenderer | None = None  # to run chat_template; checking it needs none


class Chain:
    """Steps that fit together."""

    def __init__(self, names: Sequence[str], steps: Sequence[ChainStep]) -> None:
        self._names = names
        self._steps = steps

    def run(self, value: ChainValue, *, has_trace: bool) -> ChainOutcome:
        """The value after the last step. Raises UnprocessableError when a step makes too much of it."""
        redactions: list[Redaction] = []
        trace: list[StepTrace] = []
        for name, step in zip(self._names, self._steps, strict=True):
            value, found = step.run(value)
            _check_size(name, value)
            redactions += found
            if has_trace:
                trace.append(StepTrace(name, value))
        return ChainOutcome(value, redactions, trace)


@dataclass(frozen=True, slots=True)
class ModelChains:
    """The steps before and after one model; either may be none."""

    before: Chain
    after: Chain


def build_chains(config: ModelConfig, model: ChainModel) -> ModelChains:
    """The chains of a model. Raises ConfigError, also for what check_chains names."""
    problems = check_chains(config, model)
    if problems:
        raise ConfigError("\n".join(problems))
    return ModelChains(make_chain(config.preprocessing, model), make_chain(config.postprocessing, model, is_after=True))


def make_chain(steps: Sequence[StepConfig], model: ChainModel | None = None, *, is_after: bool = False) -> Chain:
    """The chain of these steps, which are checked already. Raises ConfigError when one cannot be made."""
    return Chain([step.name for step in steps], [_make(step, model, is_after=is_after) for step in steps])


def check_chains(config: ModelConfig, model: ChainModel) -> list[str]:
    """Every reason why a model's steps cannot stand before or after it. Users' classes are not run for it."""
    before = follow_chain(config.preprocessing, model)
    last = _LAST_KINDS.get(config.task, _ENCODED_KINDS)
    wanted = "text" if config.is_generative else " or ".join(last)
    problems = [*before.problems, *_end_problems(before, last, f"the model takes {wanted}")]
    if config.postprocessing:
        first = "numbers" if config.task == "classify" else "tensors"
        after = follow_chain(config.postprocessing, model, first=first, giver="the model", label="postprocessing")
        wanted = "an answer consists of labels (label_names), or of what a class of yours gives"
        problems += [*after.problems, *_end_problems(after, ("labels", "json"), wanted)]
    return problems


@dataclass(frozen=True, slots=True)
class ChainEnd:
    """What steps in a row come to."""

    kind: str  # of the last value; empty when it cannot be told
    giver: str  # the last step, as messages name it
    problems: list[str]


def follow_chain(
    steps: Sequence[StepConfig],
    model: ChainModel | None,
    *,
    first: str = "text",
    giver: str = "the request",
    label: str = "preprocessing",
) -> ChainEnd:
    """The kind after the last step, and every step that does not fit. Without a model there is no tokenizer."""
    problems: list[str] = []
    kind = first
    redacting = ""
    for index, config in enumerate(steps):
        where = f"{label}[{index}]={config.name}"
        takes, gives = "text", "text"
        if ":" in config.name:
            problem = users_class_problem(config.name)
            problems += [] if problem is None else [f"{where}: {problem}"]
            if kind in _ANSWER_KINDS:
                takes, gives = kind, "json"
        else:
            try:
                step = _make(config, model)
            except ConfigError as error:
                problems.append(f"{where}: {error.message}")
                kind = ""
                continue
            takes, gives = step.takes, step.gives
        is_each = kind == "texts" and takes == gives == "text"
        if kind not in ("", takes) and not is_each:
            problems.append(f"{where} takes {takes}, but {giver} gives {kind}; change their order")
        if config.name == "strip_html" and redacting:
            problems.append(f"{where} would take the placeholders of {redacting} for tags; put it before that")
        redacting = where if config.name == "redact_pii" else redacting
        kind, giver = "texts" if is_each else gives, where
    return ChainEnd(kind, giver, problems)


def _end_problems(end: ChainEnd, last: Sequence[str], wanted: str) -> list[str]:
    if not end.kind or end.kind in last:
        return []
    return [f"{end.giver} gives {end.kind}, but {wanted}; end with another step"]


def _make(config: StepConfig, model: ChainModel | None, *, is_after: bool = False) -> ChainStep:
    arguments: dict[str, object] = dict(config.arguments)
    if ":" in config.name:
        return UserAnswerStep(config.name, arguments) if is_after else UserTextStep(config.name, arguments)
    if config.name in _OF_A_MODEL:
        return _make_of_model(config.name, arguments, model)
    make = _STEPS.get(config.name)
    if make is None:
        names = [*_STEPS, *_OF_A_MODEL]
        closest = difflib.get_close_matches(config.name, names, n=1)
        way_out = f"did you mean {closest[0]}?" if closest else f"use {', '.join(names)}, or package.module:Class"
        raise ConfigError(f"is not a step; {way_out}")
    _check_arguments(make, arguments)
    return make(**arguments)


def _make_of_model(name: str, arguments: dict[str, object], model: ChainModel | None) -> ChainStep:
    if model is None:
        raise ConfigError("is for the steps of a model itself; remove it here")
    if name == "label_names":
        _check_arguments(LabelNames, arguments, "known")
        return LabelNames(model.labels, **arguments)  # type: ignore[arg-type]  # it checks its arguments
    if arguments:
        raise ConfigError(f"takes no arguments; remove {', '.join(arguments)}")
    tokenizer = Tokenizer.load(model.directory)
    return Tokenize(tokenizer) if name == "tokenize" else ChatTemplate(tokenizer, model.renderer)


def _check_arguments(make: Callable[..., ChainStep], arguments: dict[str, object], *hidden: str) -> None:
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(make).parameters.items()
        if name not in ("args", "kwargs", *hidden)
    }
    unknown = sorted(arguments.keys() - parameters.keys())
    if unknown:
        takes = f"it takes {', '.join(parameters)}" if parameters else "it takes none"
        raise ConfigError(f"argument {unknown[0]} is not known; {takes}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in arguments:
            raise ConfigError(f"argument {name} is missing; write it as `step: {{{name}: ...}}`")


def _check_size(name: str, value: ChainValue) -> None:
    texts = value.texts if value.texts is not None else [value.text or value.json or ""]
    if len(texts) > MAX_TEXTS or sum(map(len, texts)) > MAX_CHARS:
        raise UnprocessableError(f"step {name} made more than {MAX_TEXTS} texts or {MAX_CHARS} characters; send less")


def kind_of(value: ChainValue) -> str:
    """Which field of a value is set."""
    return next(field.name for field in fields(value) if getattr(value, field.name) is not None)
