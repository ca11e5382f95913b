"""Preprocessing steps as a user would write them."""


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


class Numbers:
    """Gives no text."""

    def __call__(self, text: str) -> int:
        """How long it is."""
        return len(text)
