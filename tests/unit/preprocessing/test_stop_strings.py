"""Stop strings: what is shown, what is held back, where the text ends."""

import random

import pytest

from serve_app.errors import RequestError
from serve_app.preprocessing.stop_strings import MAX_STOP_STRINGS, StopMatcher, StopStrings


def matcher(*stops: str, include_in_output: bool = False) -> StopMatcher:
    found = StopStrings(stops, include_in_output=include_in_output).matcher()
    assert found is not None
    return found


def test_text_without_a_candidate_passes_at_once() -> None:
    stop = matcher("END")
    assert stop.feed("hello ") == "hello "
    assert stop.matched is None


def test_only_the_possible_beginning_of_a_stop_string_is_held_back() -> None:
    stop = matcher("END")
    assert [stop.feed(text) for text in ("a E", "N", "x", "E")] == ["a ", "", "ENx", ""]
    assert stop.flush() == "E"


def test_a_match_over_several_pieces_ends_the_text_before_it() -> None:
    stop = matcher("\n\nUser:")
    assert [stop.feed(text) for text in ("hi\n", "\nUs", "er: more")] == ["hi", "", ""]
    assert stop.matched == "\n\nUser:"
    assert stop.feed("later") == ""


def test_a_match_is_shown_when_asked_for() -> None:
    stop = matcher("END", include_in_output=True)
    assert stop.feed("aE") + stop.feed("NDb") == "aEND"


def test_a_beginning_inside_a_failed_beginning_is_found() -> None:
    stop = matcher("aab")
    assert "".join(stop.feed(character) for character in "aaab") == "a"
    assert stop.matched == "aab"


def test_of_two_stop_strings_that_end_together_the_longer_counts() -> None:
    stop = matcher("b", "ab")
    assert stop.feed("xab") == "x"
    assert stop.matched == "ab"


def test_characters_of_regular_expressions_are_plain_text() -> None:
    stop = matcher("]^-", ".")
    assert stop.feed("a^-]") == "a^-"
    assert stop.feed("b.") == "]b"
    assert stop.matched == "."


def test_no_stop_strings_need_no_matcher() -> None:
    assert StopStrings([]).matcher() is None


def test_random_texts_end_where_a_plain_search_ends_them() -> None:
    draw = random.Random(5)
    for _ in range(300):
        text = "".join(draw.choices("ab", k=40))
        stops = ["".join(draw.choices("ab", k=draw.randint(2, 7))) for _ in range(3)]
        stop = matcher(*stops)
        shown, position = "", 0
        while position < len(text):
            size = draw.randint(1, 4)
            shown += stop.feed(text[position : position + size])
            position += size
        shown += stop.flush()
        ends = [text.find(candidate) + len(candidate) for candidate in stops if candidate in text]
        if not ends:
            assert (shown, stop.matched) == (text, None)
        else:
            longest = max((s for s in stops if text[: min(ends)].endswith(s)), key=len)
            assert (shown, stop.matched) == (text[: min(ends) - len(longest)], longest)


@pytest.mark.parametrize("stops", [["x"] * (MAX_STOP_STRINGS + 1), [""], ["a", "b" * 1025]])
def test_too_many_empty_and_long_ones_are_refused(stops: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        StopStrings(stops)
    assert caught.value.field == "stop"
    assert caught.value.message.startswith("stop")
