"""How a text classifier is trained: each setting with its meaning and its bounds; no torch."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from serve_app.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a number may be."""

    least: float
    most: float
    excludes_least: bool = False
    excludes_most: bool = False

    @property
    def words(self) -> str:
        """As people are told of them."""
        lower = f"above {self.least:,}" if self.excludes_least else f"from {self.least:,}"
        return f"{lower}, below {self.most:,}" if self.excludes_most else f"{lower} to {self.most:,}"

    def refusal(self, value: float) -> str | None:
        """What to give in place of a value that is out of bounds, or not finite; None: it is within them."""
        is_low = value <= self.least if self.excludes_least else value < self.least
        is_high = value >= self.most if self.excludes_most else value > self.most
        if math.isfinite(value) and not is_low and not is_high:
            return None
        lower = f"more than {self.least:g}" if self.excludes_least else f"{self.least:g} or more"
        if is_high and math.isfinite(value):
            return f"give less than {self.most:g}" if self.excludes_most else f"give {self.most:g} or less"
        return f"give {lower}"


_COUNT = Bounds(1, 1_000_000)
_WIDTH = Bounds(1, 16_384)
_DROPPED = Bounds(0, 1, excludes_most=True)


def _setting(default: Any, meaning: str, bounds: Bounds) -> Any:
    return field(default=default, metadata={"meaning": meaning, "bounds": bounds})


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a classifier is trained."""

    embedding_dim: int = _setting(64, "numbers that stand for a word", _WIDTH)
    hidden_size: int = _setting(64, "numbers that the LSTM keeps, in each direction", _WIDTH)
    dropout: float = _setting(0.3, "share of the numbers left out in training", _DROPPED)
    word_dropout: float = _setting(0.2, "share of the words made unknown in training", _DROPPED)
    learning_rate: float = _setting(3e-3, "of Adam", Bounds(0, 1, excludes_least=True))
    batch_size: int = _setting(32, "rows of a step, over all workers", _COUNT)
    max_epochs: int = _setting(30, "times through all rows, at most", _COUNT)
    patience: int = _setting(4, "epochs without a better validation loss, after which it ends", _COUNT)
    validation_share: float = _setting(
        0.15, "share of the rows that tells when to end", Bounds(0, 0.5, excludes_least=True)
    )
    min_frequency: int = _setting(2, "times that a word comes in the texts, else it is unknown", _COUNT)
    max_vocabulary: int = _setting(30_000, "words that are known, at most", Bounds(3, 10_000_000))
    seed: int = _setting(0, "of all that is drawn; on one thread, the same bytes again", Bounds(0, 2**32 - 1))


@dataclass(frozen=True, slots=True)
class SettingFacts:
    """One setting as a command shows it."""

    name: str
    default: int | float
    meaning: str
    bounds: str  # in words

    @property
    def option(self) -> str:
        """On the command line."""
        return f"--{self.name.replace('_', '-')}"


def training_settings() -> list[SettingFacts]:
    """All settings of a training."""
    defaults = TrainingSettings()
    return [
        SettingFacts(one.name, getattr(defaults, one.name), one.metadata["meaning"], one.metadata["bounds"].words)
        for one in fields(TrainingSettings)
    ]


def check_training(settings: TrainingSettings, num_threads: int) -> None:
    """Raises ConfigError that names every value that nothing can be trained with."""
    problems = []
    for one in fields(TrainingSettings):
        value = getattr(settings, one.name)
        refusal = one.metadata["bounds"].refusal(value)
        if refusal is not None:
            problems.append(f"--{one.name.replace('_', '-')} {value:g} cannot be; {refusal}")
    threads = Bounds(1, 1024).refusal(num_threads)
    if threads is not None:
        problems.append(f"--threads {num_threads} cannot be; {threads}")
    if problems:
        raise ConfigError("\n".join(problems))
