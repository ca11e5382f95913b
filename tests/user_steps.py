"""Steps as a user would write them."""

import time
from typing import Any

import numpy as np


class Reverse:
    """The text from its end to its beginning, so many times."""

    def __init__(self, times: int = 1) -> None:
        self._times = times

    def __call__(self, text: str) -> str:
        """The text, reversed."""
        return text[::-1] if self._times % 2 else text


class Touchy:
    """Raises, quoting the text, when it holds the word."""

    def __init__(self, word: str) -> None:
        self._word = word

    def __call__(self, text: str) -> str:
        """The text as it is."""
        if self._word in text:
            raise ValueError(f"cannot take {text}")
        return text


class Slow:
    """Computes for some time, as pure Python does."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.num_texts = 0

    def __call__(self, text: str) -> str:
        """The text as it is, late."""
        self.num_texts += 1
        end_s = time.monotonic() + self._seconds
        while time.monotonic() < end_s:
            sum(range(100))
        return text


class Numbers:
    """Gives no text."""

    def __call__(self, text: str) -> int:
        """How long it is."""
        return len(text)


class Spread:
    """The distance between the least and the greatest of what a model gives."""

    def __call__(self, given: Any) -> dict[str, float]:
        """The distance, and of how many numbers."""
        values = list(given.values()) if isinstance(given, dict) else given
        numbers = [float(one) for value in values for one in np.asarray(value).reshape(-1)]
        return {"spread": max(numbers) - min(numbers), "of": len(numbers)}


class Unspeakable:
    """Gives what JSON cannot hold."""

    def __call__(self, given: object) -> dict[str, object]:
        """A set of what it gets."""
        return {"it": {type(given)}}
