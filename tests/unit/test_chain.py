"""Steps alone and in a row: what they make, and which rows are refused before anything runs."""

import time
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import ModelConfig, StepConfig
from serve_app.errors import ConfigError, InternalError, UnprocessableError
from serve_app.preprocessing import chain as chain_module
from serve_app.preprocessing.chain import build_chain, check_chain, kind_of
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types import ChainValue, Preprocessed
from tests.fakes import save_model_dir


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_dir(tmp_path_factory.mktemp("model"))


def steps(*given: Any) -> list[StepConfig]:
    config = ModelConfig.model_validate({"name": "m", "source": "s", "task": "embed", "preprocessing": list(given)})
    return config.preprocessing


def run(directory: Path, text: str, *given: Any) -> Preprocessed:
    """What a chain makes of a text; it may end in texts."""
    chosen = steps(*given)
    chain = chain_module.Chain([one.name for one in chosen], [chain_module._make(one, directory) for one in chosen])
    return chain.run(ChainValue(text=text), has_trace=True)


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("normalize_unicode", "ﬁn \u0041\u030a", "fin Å"),
        ({"normalize_unicode": {"form": "NFC"}}, "ﬁn", "ﬁn"),
        ("lowercase", "ÄBC", "äbc"),
        ("collapse_whitespace", " a\t\n b\u00a0c ", "a b c"),
        ("strip_html", "<p>a&amp;b<script>x()</script></p><b>c</b>", " a&b c"),
        ("strip_html", "<!DOCTYPE html><br/>a", " a"),
        ("strip_html", "1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("strip_html", "<!-- gone -->kept<style>p{}</style>", "kept"),
        ({"truncate": {"max_chars": 3}}, "abcdef", "abc"),
        ("redact_pii", "mail a@b.de", "mail <EMAIL_1>"),
        ({"redact_pii": {"kinds": ["ip"]}}, "mail a@b.de", "mail a@b.de"),
        ("tests.user_steps:Reverse", "abc", "cba"),
        ({"tests.user_steps:Reverse": {"times": 2}}, "abc", "abc"),
    ],
)
def test_a_text_step_does_what_it_says(directory: Path, step: Any, text: str, expected: str) -> None:
    assert run(directory, text, step).value == ChainValue(text=expected)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith paid 3.50 to J. Doe. He left...", ["Dr. Smith paid 3.50 to J. Doe.", "He left..."]),
        ('"Stop!" she said. He did.', ['"Stop!"', "she said.", "He did."]),
        ("no end\n\nnext part", ["no end", "next part"]),
        ("", []),
        ("...", ["..."]),
    ],
)
def test_sentences_end_at_their_marks(directory: Path, text: str, sentences: list[str]) -> None:
    assert run(directory, text, "split_sentences").value == ChainValue(texts=sentences)


def test_a_chain_runs_in_order_and_shows_every_step(directory: Path) -> None:
    made = run(directory, "Mail A@B.DE!  Now. ", "redact_pii", "lowercase", "split_sentences", "collapse_whitespace")
    assert made.value == ChainValue(texts=["mail <email_1>!", "now."])
    assert [one.step for one in made.trace] == ["redact_pii", "lowercase", "split_sentences", "collapse_whitespace"]
    assert [kind_of(one.value) for one in made.trace] == ["text", "text", "texts", "texts"]
    assert [one.original for one in made.redactions] == ["A@B.DE"]


def test_tokenize_gives_the_models_own_tokens(directory: Path) -> None:
    made = run(directory, "The rain", "tokenize", {"truncate": {"max_tokens": 2}})
    assert made.value.token_ids == Tokenizer.load(directory).encode("The rain")[:2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["lowercas"], "preprocessing[0]=lowercas: is no step; did you mean lowercase?"),
        (["xyz"], "use normalize_unicode, lowercase"),
        (
            ["tokenize", "lowercase"],
            "preprocessing[1]=lowercase takes text, but preprocessing[0]=tokenize gives token_ids",
        ),
        (["split_sentences"], "preprocessing[0]=split_sentences gives texts, but the model takes text or token_ids"),
        (["split_sentences", "tokenize"], "preprocessing[1]=tokenize takes text, but preprocessing[0]"),
        ([{"truncate": {"max_tokens": 3}}], "preprocessing[0]=truncate takes token_ids, but the request gives text"),
        ([{"truncate": {}}], "give either max_chars or max_tokens"),
        ([{"truncate": {"max_chars": 0}}], "0 is no length"),
        ([{"truncate": {"max_chars": "3"}}], "'3' is no length"),
        ([{"lowercase": {"locale": "de"}}], "argument locale is not known; it takes none"),
        ([{"normalize_unicode": {"form": "X"}}], "form='X' is not known"),
        ([{"redact_pii": {"kinds": ["names"]}}], "kinds='names' is not known; use email"),
        ([{"tokenize": {"fast": True}}], "takes no arguments; remove fast"),
        (["tests.no_such:Step"], "there is no module tests.no_such"),
    ],
)
def test_a_chain_that_cannot_work_is_refused_before_it_runs(directory: Path, given: list[Any], message: str) -> None:
    problems = check_chain(steps(*given), directory)
    assert any(message in problem for problem in problems), problems
    with pytest.raises(ConfigError):
        build_chain(steps(*given), directory)


@pytest.mark.parametrize("given", [[], ["lowercase"], ["lowercase", "tokenize"], ["tests.user_steps:Reverse"]])
def test_a_chain_that_fits_is_taken(directory: Path, given: list[Any]) -> None:
    assert check_chain(steps(*given), directory) == []
    build_chain(steps(*given), directory)


def test_a_users_exception_is_told_by_its_kind_alone(directory: Path) -> None:
    with pytest.raises(InternalError) as caught:
        run(directory, "a secret word", {"tests.user_steps:Touchy": {"word": "secret"}})
    assert caught.value.message == "preprocessing step tests.user_steps:Touchy failed: ValueError"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_users_step_that_gives_no_text_is_named(directory: Path) -> None:
    with pytest.raises(InternalError, match=r"tests\.user_steps:Numbers gave int, not a text"):
        run(directory, "abc", "tests.user_steps:Numbers")


def test_a_step_that_makes_too_much_is_stopped(directory: Path) -> None:
    with pytest.raises(UnprocessableError, match="split_sentences"):
        run(directory, "ab. " * 100_001, "split_sentences")


@pytest.mark.parametrize("step", ["strip_html", "split_sentences", "collapse_whitespace", "normalize_unicode"])
@pytest.mark.parametrize("piece", ["<", "<a ", "</", "&", "<!--", ". ", "\n", " ", "a.", "<script>", '"'])
def test_a_hostile_text_does_not_hold_a_step_up(directory: Path, step: str, piece: str) -> None:
    text = piece * (150_000 // len(piece))
    started = time.process_time()
    run(directory, text, step)
    assert time.process_time() - started < 3
