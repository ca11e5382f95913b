"""Steps in a row: what they are called, whether they fit, and running them."""

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from serve_app.config import StepConfig
from serve_app.errors import ConfigError, InternalError, UnprocessableError
from serve_app.preprocessing.text_steps import (
    CollapseWhitespace,
    Lowercase,
    NormalizeUnicode,
    RedactPii,
    SplitSentences,
    Step,
    StripHtml,
    TextStep,
    Tokenize,
    Truncate,
)
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types import ChainValue, Preprocessed, Redaction, StepTrace

MAX_CHARS = 16_000_000  # of what a step makes
MAX_TEXTS = 100_000

_STEPS: dict[str, Callable[..., Step]] = {
    "normalize_unicode": NormalizeUnicode,
    "lowercase": Lowercase,
    "strip_html": StripHtml,
    "collapse_whitespace": CollapseWhitespace,
    "truncate": Truncate,
    "split_sentences": SplitSentences,
    "redact_pii": RedactPii,
}
_TOKENIZE = "tokenize"


class UserStep(TextStep):
    """A class of the user's, `package.module:Class`, that maps a text to a text."""

    def __init__(self, path: str, arguments: dict[str, object]) -> None:
        self._path = path
        module_name, _, class_name = path.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), class_name, None)
        except ImportError as error:
            raise ConfigError(f"{path} cannot be imported ({error}); install it, or correct the path") from error
        if not isinstance(found, type):
            raise ConfigError(f"{module_name} has no class {class_name}; correct the path")
        self._call: Callable[[str], object] = found(**arguments)

    def change(self, text: str) -> str:
        """What the user's class makes of a text. Its exceptions are told by their kind alone: they may quote it."""
        kind = ""
        try:
            changed = self._call(text)
        except Exception as error:
            kind = type(error).__name__
        if kind:
            raise InternalError(f"preprocessing step {self._path} failed: {kind}")
        if not isinstance(changed, str):
            raise InternalError(f"preprocessing step {self._path} gave {type(changed).__name__}, not a text")
        return changed


class Chain:
    """Steps that fit together."""

    def __init__(self, names: Sequence[str], steps: Sequence[Step]) -> None:
        self._names = names
        self._steps = steps

    def run(self, value: ChainValue, *, has_trace: bool) -> Preprocessed:
        """The value behind the last step. Raises UnprocessableError when a step makes too much of it."""
        redactions: list[Redaction] = []
        trace: list[StepTrace] = []
        for name, step in zip(self._names, self._steps, strict=True):
            value, found = step.run(value)
            _check_size(name, value)
            redactions += found
            if has_trace:
                trace.append(StepTrace(name, value))
        return Preprocessed(value, redactions, trace)


def build_chain(steps: Sequence[StepConfig], directory: Path) -> Chain:
    """The chain of a model whose tokenizer is in `directory`. Raises ConfigError, also for what check_chain names."""
    problems = check_chain(steps, directory)
    if problems:
        raise ConfigError("\n".join(problems))
    return make_chain(steps, directory)


def make_chain(steps: Sequence[StepConfig], directory: Path | None = None) -> Chain:
    """The chain of these steps, which are checked already. Raises ConfigError when one cannot be made."""
    return Chain([step.name for step in steps], [_make(step, directory) for step in steps])


def check_chain(
    steps: Sequence[StepConfig], directory: Path, *, last: Sequence[str] = ("text", "token_ids")
) -> list[str]:
    """Every reason why these steps cannot stand before a model. Users' classes are not run for it."""
    end = follow_chain(steps, directory)
    problems = list(end.problems)
    if end.kind and end.kind not in last:
        wanted = " or ".join(last)
        problems.append(f"{end.giver} gives {end.kind}, but the model takes {wanted}; end with another step")
    return problems


@dataclass(frozen=True, slots=True)
class ChainEnd:
    """What steps in a row come to."""

    kind: str  # of the last value; empty when it cannot be told
    giver: str  # the last step, as messages name it
    problems: list[str]


def follow_chain(
    steps: Sequence[StepConfig],
    directory: Path | None,
    *,
    first: str = "text",
    giver: str = "the request",
    label: str = "preprocessing",
) -> ChainEnd:
    """The kind behind the last step, and every step that does not fit. Without a directory there is no tokenizer."""
    problems: list[str] = []
    kind = first
    for index, config in enumerate(steps):
        where = f"{label}[{index}]={config.name}"
        takes, gives = "text", "text"
        if ":" in config.name:
            problems += _user_problems(where, config.name)
        else:
            try:
                step = _make(config, directory)
            except ConfigError as error:
                problems.append(f"{where}: {error.message}")
                kind = ""
                continue
            takes, gives = step.takes, step.gives
        is_each = kind == "texts" and takes == gives == "text"
        if kind not in ("", takes) and not is_each:
            problems.append(f"{where} takes {takes}, but {giver} gives {kind}; change their order")
        kind, giver = "texts" if is_each else gives, where
    return ChainEnd(kind, giver, problems)


def _make(config: StepConfig, directory: Path | None) -> Step:
    arguments: dict[str, object] = dict(config.arguments)
    if ":" in config.name:
        return UserStep(config.name, arguments)
    if config.name == _TOKENIZE:
        if arguments:
            raise ConfigError(f"takes no arguments; remove {', '.join(arguments)}")
        if directory is None:
            raise ConfigError("is for a model's own preprocessing: here models tokenize by themselves; remove it")
        return Tokenize(Tokenizer.load(directory))
    make = _STEPS.get(config.name)
    if make is None:
        names = [*_STEPS, _TOKENIZE]
        closest = difflib.get_close_matches(config.name, names, n=1)
        way_out = f"did you mean {closest[0]}?" if closest else f"use {', '.join(names)}, or package.module:Class"
        raise ConfigError(f"is no step; {way_out}")
    known = [name for name in inspect.signature(make).parameters if name not in ("args", "kwargs")]
    unknown = sorted(arguments.keys() - set(known))
    if unknown:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ConfigError(f"argument {unknown[0]} is not known; {takes}")
    return make(**arguments)


def _user_problems(where: str, path: str) -> list[str]:
    module_name, _, class_name = path.partition(":")
    try:
        found = importlib.util.find_spec(module_name) if class_name.isidentifier() else None
    except (ImportError, ValueError):
        found = None
    if found is None:
        return [f"{where}: there is no module {module_name} to import a class from; install it, or correct the path"]
    return []


def _check_size(name: str, value: ChainValue) -> None:
    texts = value.texts if value.texts is not None else [value.text or ""]
    if len(texts) > MAX_TEXTS or sum(map(len, texts)) > MAX_CHARS:
        raise UnprocessableError(
            f"preprocessing step {name} made more than {MAX_TEXTS} texts or {MAX_CHARS} characters; send less"
        )


def kind_of(value: ChainValue) -> str:
    """Which field of a value is set."""
    return next(field.name for field in fields(value) if getattr(value, field.name) is not None)
