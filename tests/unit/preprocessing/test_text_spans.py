"""Tokens and the words that they belong to, by characters."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Core

from serve_app.preprocessing.text_spans import Unit, text_spans
from serve_app.preprocessing.tokenizer import Tokenizer
from tests.fakes import byte_fallback_tokenizer, byte_level_tokenizer, save_model_dir

TICKETS = Path(__file__).parents[3] / "examples" / "text_classifier" / "model"


def pieces(tokenizer: Tokenizer, text: str, unit: Unit) -> list[str]:
    tokens = tokenizer.place(text)
    spans = text_spans([text], tokens.places, unit)
    placed = [index for index, place in enumerate(tokens.places) if place is not None]
    assert [index for span in spans for index in span.tokens] == placed  # each once, in order
    assert tokens.token_ids == tokenizer.encode(text)
    return [text[span.start : span.end] for span in spans]


@pytest.mark.parametrize(
    ("core", "text", "words"),
    [
        (byte_level_tokenizer(), "  hé  the cat's 日本\n", ["hé", "the", "cat", "'s", "日", "本"]),
        (byte_level_tokenizer(), "naïve 🙂!", ["naïve", "🙂!"]),
        (byte_fallback_tokenizer(), "the cat 日本 a", ["the", "cat", "日", "本", "a"]),
    ],
)
def test_words_end_at_white_space_and_where_the_tokenizer_says(
    tmp_path: Path, core: Core, text: str, words: list[str]
) -> None:
    assert pieces(Tokenizer.load(save_model_dir(tmp_path, core)), text, "word") == words


def test_offsets_are_those_of_the_text_as_it_was_sent_whatever_normalizing_does() -> None:
    text = "Déjà-vu, MY refund"
    assert pieces(Tokenizer.load(TICKETS), text, "word") == ["Déjà", "-", "vu", ",", "MY", "refund"]


def test_tokens_that_share_a_character_are_one_piece(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(save_model_dir(tmp_path, byte_level_tokenizer()))
    assert pieces(tokenizer, "é日x", "token") == ["é", "日", "x"]


def test_a_prompt_before_a_text_and_special_tokens_have_no_place() -> None:
    tokenizer = Tokenizer.load(TICKETS)
    tokens = tokenizer.place_entry("my refund", "is late", prompt="query: ")
    assert [None if place is None else (place.part, place.start, place.end) for place in tokens.places] == [
        None,
        None,
        (0, 0, 2),
        (0, 3, 9),
        (1, 0, 2),
        (1, 3, 7),
    ]
    assert tokens.token_ids == tokenizer.encode_entry("my refund", "is late", prompt="query: ").token_ids
