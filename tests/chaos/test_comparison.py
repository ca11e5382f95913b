"""When a text counts as changed."""

import pytest

from tests.chaos.comparison import is_changed
from tests.chaos.event_stream import Answer


@pytest.mark.parametrize(
    ("texts", "num_tokens", "failure", "changed"),
    [
        ({0: "abc", 1: "xyz"}, 6, None, False),
        ({0: "abc", 1: "xyy"}, 6, None, True),
        ({0: "abc"}, 6, None, True),  # a choice is missing
        ({0: "abcabc", 1: "xyz"}, 6, None, True),  # repeated
        ({0: "abc", 1: "xyz"}, 7, None, True),  # a token was counted twice
        ({0: "ab"}, None, "cut", False),
        ({}, None, "refused", False),
        ({0: "b"}, None, "cut", True),
        ({2: "a"}, None, "cut", True),
    ],
)
def test_a_whole_text_must_be_equal_and_that_of_a_failed_stream_a_beginning(
    texts: dict[int, str], num_tokens: int | None, failure: str | None, changed: bool
) -> None:
    undisturbed = Answer({0: "abc", 1: "xyz"}, 6, None, 0.1)
    assert is_changed(Answer(texts, num_tokens, failure, 0.1), undisturbed) is changed
