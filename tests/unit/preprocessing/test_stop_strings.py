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


def run_with_hidden(stop: StopMatcher, pieces: str) -> str:
    """Feeds characters; a capital letter is a special token that the text does not show."""
    shown = [stop.feed_hidden(one) if one.isupper() else stop.feed(one) for one in pieces]
    return "".join(shown) + ("" if stop.matched else stop.flush())


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "matched"),
    [
        (["E"], "abEc", "ab", "E"),
        (["Eu:"], "abEEu:c", "ab", "Eu:"),
        (["b"], "aEbc", "a", "b"),
        (["ac"], "baEEcd", "b", "ac"),
        (["xE", "acd"], "aEcEdx", "", "acd"),
        (["xE", "acd"], "aEceEdx", "acedx", None),
        (["bEF"], "abEEbEGF", "abb", None),
        (["bE", "ab"], "xaFbE", "x", "ab"),
    ],
)
def test_special_tokens_that_are_not_shown_are_seen_by_stop_strings_that_hold_one(
    stops: list[str], pieces: str, shown: str, matched: str | None
) -> None:
    stop = StopStrings(stops, special_tokens="EFG").matcher()
    assert stop is not None
    assert run_with_hidden(stop, pieces) == shown
    assert stop.matched == matched


def test_a_special_token_that_ends_the_text_is_shown_when_asked_for() -> None:
    stop = StopStrings(["bE"], include_in_output=True, special_tokens="EF").matcher()
    assert stop is not None
    assert run_with_hidden(stop, "aFbEc") == "abE"


def test_random_texts_with_hidden_tokens_end_where_a_search_finds_it() -> None:
    draw = random.Random(4)
    for _ in range(500):
        stops = ["".join(draw.choices("abEF", k=draw.randint(1, 4))) for _ in range(3)]
        pieces = "".join(draw.choices("abEFG", k=14))
        stop = StopStrings(stops, special_tokens="EFG").matcher()
        assert stop is not None
        shown = run_with_hidden(stop, pieces)
        ends = []
        for one in stops:
            has_special = one != one.lower()
            for end in range(1, len(pieces) + 1):
                seen = pieces[:end] if has_special else "".join(c for c in pieces[:end] if c.islower())
                if seen.endswith(one) and (has_special or pieces[end - 1].islower()):
                    rest = seen[: len(seen) - len(one)]
                    ends.append((end, -len(one), "".join(c for c in rest if c.islower())))
                    break
        expected = min(ends)[2] if ends else "".join(c for c in pieces if c.islower())
        assert shown == expected


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
