"""Which modules of a checkpoint are quantized, and how; no torch."""

import re
from dataclasses import dataclass
from typing import Literal

from serve_app.checkpoints.checkpoint_json import shown
from serve_app.errors import ConfigError
from serve_app.types.shards import WeightScheme

_KINDS = {"Linear": "linear", "Embedding": "embedding"}

# How numbers are packed into words where `qweight` holds them; gptq_v2 stores zero points as they are, gptq less one.
WordLayout = Literal["gptq", "gptq_v2", "awq_gemm", "awq_gemv"]


@dataclass(frozen=True, slots=True)
class Target:
    """Which modules: those of a class, of a name, or whose name a pattern finds."""

    text: str

    def matches(self, module: str, kind: str) -> bool:
        """Whether a module of this name and kind (`linear` or `embedding`) is meant."""
        if self.text.startswith("re:"):
            return re.match(self.text[3:], module) is not None
        return _KINDS.get(self.text) == kind or module == self.text or module.endswith(f".{self.text}")


@dataclass(frozen=True, slots=True)
class CheckpointQuantization:
    """Which modules of a checkpoint are quantized, and how."""

    method: str  # compressed-tensors, gptq, awq or fp8
    groups: tuple[
        tuple[tuple[Target, ...], WeightScheme | None], ...
    ]  # the first that matches counts; None: not at all
    ignored: tuple[Target, ...]
    word_layout: WordLayout | None = None  # of gptq and awq
    has_input_order: bool = False  # inputs of a group need not follow each other (act-order)

    def scheme_of(self, module: str, kind: str) -> WeightScheme | None:
        """The scheme of a module's weight; None: it is stored as it is."""
        if any(target.matches(module, kind) for target in self.ignored):
            return None
        for targets, scheme in self.groups:
            if any(target.matches(module, kind) for target in targets):
                return scheme
        return None


def read_targets(given: object, where: str) -> tuple[Target, ...]:
    """A list of modules as config.json has it. Raises ConfigError; `where` begins its message."""
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise ConfigError(f"{where}: {shown(given)} is not a list of modules; compress the model again")
    return tuple(Target(_checked(one, where)) for one in given)


def pattern_target(pattern: str, where: str) -> Target:
    """The modules whose names begin with what the pattern matches. Raises ConfigError."""
    return Target(_checked(f"re:{pattern}", where))


def _checked(text: str, where: str) -> str:
    """A pattern must run in linear time: no repetition of a repetition."""
    if not text.startswith("re:"):
        return text
    pattern = text[3:]
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{where}: {shown(pattern)} is not a pattern ({error}); compress the model again") from error
    if len(pattern) > 256 or re.search(r"[+*}]\)*[+*{]", pattern):
        raise ConfigError(f"{where}: the pattern {shown(pattern)} repeats a repetition; write it without")
    return text
