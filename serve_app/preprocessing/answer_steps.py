"""The steps after a model: from the numbers of one entry to labels with their scores."""

from collections.abc import Sequence

import numpy as np

from serve_app.errors import ConfigError, InternalError
from serve_app.preprocessing.arrays import sigmoid, softmax
from serve_app.preprocessing.model_entries import ranked
from serve_app.types.chains import ChainValue, LabelScore, Redaction


class Softmax:
    """Probabilities that add up to one."""

    takes = gives = "numbers"

    def run(self, value: ChainValue) -> tuple[ChainValue, list[Redaction]]:
        """Of the numbers [C]."""
        return ChainValue(numbers=softmax(np.array([_numbers(value)], np.float32))[0].tolist()), []


class Sigmoid:
    """A probability for each output by itself."""

    takes = gives = "numbers"

    def run(self, value: ChainValue) -> tuple[ChainValue, list[Redaction]]:
        """Of the numbers [C]."""
        return ChainValue(numbers=sigmoid(np.array([_numbers(value)], np.float32))[0].tolist()), []


class LabelNames:
    """Labels with their scores, in the order of the outputs; `names` stand in for those of the checkpoint."""

    takes, gives = "numbers", "labels"

    def __init__(self, known: Sequence[str], names: list[str] | None = None) -> None:
        if names is not None:
            if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
                raise ConfigError("names is not a list of labels; give one for each output")
            if len(set(names)) < len(names):
                raise ConfigError("names holds a label twice; give each output its own")
            if known and len(names) != len(known):
                raise ConfigError(f"names has {len(names)} labels, and the model {len(known)}; give one for each")
        self._names = names
        self._known = list(known)

    def run(self, value: ChainValue) -> tuple[ChainValue, list[Redaction]]:
        """Name the numbers [C]."""
        numbers = _numbers(value)
        names = self._names or self._known[: len(numbers)]
        if self._names is None and len(names) < len(numbers):
            names = [f"LABEL_{index}" for index in range(len(numbers))]
        if len(names) != len(numbers):
            raise InternalError(f"label_names has {len(names)} labels, and the model gave {len(numbers)} numbers")
        return ChainValue(labels=[LabelScore(name, score) for name, score in zip(names, numbers, strict=True)]), []


class TopK:
    """The `k` labels of the highest scores, the highest first."""

    takes = gives = "labels"

    def __init__(self, k: int) -> None:
        if type(k) is not int or k < 1:
            raise ConfigError(f"k={k!r} is not a number of labels; use an integer above 0")
        self._k = k

    def run(self, value: ChainValue) -> tuple[ChainValue, list[Redaction]]:
        """Leave the others out."""
        assert value.labels is not None
        return ChainValue(labels=ranked(value.labels)[: self._k]), []


class Threshold:
    """The labels whose score is at least `min_score`; there may be none."""

    takes = gives = "labels"

    def __init__(self, min_score: float) -> None:
        if type(min_score) not in (int, float):
            raise ConfigError(f"min_score={min_score!r} is not a number; use one such as 0.5")
        self._min_score = min_score

    def run(self, value: ChainValue) -> tuple[ChainValue, list[Redaction]]:
        """Leave the others out."""
        assert value.labels is not None
        return ChainValue(labels=[one for one in value.labels if one.score >= self._min_score]), []


def _numbers(value: ChainValue) -> list[float]:
    assert value.numbers is not None
    return value.numbers
