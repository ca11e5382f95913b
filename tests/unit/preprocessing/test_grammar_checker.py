"""Grammars tried out in a process: good ones, broken ones, and those that are meant to harm."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from serve_app.errors import RequestError
from serve_app.preprocessing.grammar_checker import GrammarChecker
from serve_app.preprocessing.grammar_text import check_own_grammar, choice_grammar, regex_grammar, schema_grammar

MOST_S = 30.0  # far above the limit of CPU time: the machine may be busy


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def checker() -> AsyncIterator[GrammarChecker]:
    checker = GrammarChecker(0.3)
    yield checker
    checker.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "grammar",
    [
        regex_grammar("(a+)+b", "f"),
        regex_grammar("a/b\\d", "f"),
        choice_grammar(["yes", 'n"o', "é\n"], "f"),
        schema_grammar(True),
        schema_grammar({"type": "object"}, has_whitespace=False),
        schema_grammar({"type": "object"}, whitespace_pattern=" ?"),
        schema_grammar({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}),
    ],
)
async def test_what_fits_comes_back_as_it_is(checker: GrammarChecker, grammar: str) -> None:
    assert await checker.check(grammar, "f") == grammar


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (regex_grammar("(?=a)b", "f"), "look-around"),
        (regex_grammar("(a", "f"), "unclosed group"),
        (schema_grammar({"type": "string", "format": "secret"}), "Unknown format: secret"),
        (schema_grammar({"uniqueItems": True}), "uniqueItems"),
        (schema_grammar({"$ref": "#"}), "no text fits it"),
        (schema_grammar({"$ref": "http://example.com"}), "http://example.com"),
        (schema_grammar({"oneOf": [{"type": "string"}, {"minLength": 3}]}), "oneOf"),
        (schema_grammar({"type": "integer", "multipleOf": 999_983}), "longer than 0.3 s"),
        (schema_grammar({"properties": {f"p{number}": {} for number in range(10_000)}}), "longer than 0.3 s"),
    ],
)
async def test_what_does_not_is_refused_in_time(checker: GrammarChecker, grammar: str, reason: str) -> None:
    started_s = time.monotonic()
    with pytest.raises(RequestError, match=reason) as caught:
        await checker.check(grammar, "f")
    assert caught.value.field == "f"
    assert time.monotonic() - started_s < MOST_S


@pytest.mark.asyncio(loop_scope="module")
async def test_a_clients_own_grammar_is_lark_or_gbnf(checker: GrammarChecker) -> None:
    assert "start:" in await checker.check('root ::= "a" [0-9]+', "f", is_own=True)
    assert "start:" in await checker.check('start: "a" B\nB: /[0-9]+/', "f", is_own=True)
    for broken in ("%%% {", "root ::= b", "start: b"):
        with pytest.raises(RequestError, match="f cannot be used"):
            await checker.check(broken, "f", is_own=True)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_grammar_is_tried_once(checker: GrammarChecker) -> None:
    grammar = schema_grammar({"type": "integer", "multipleOf": 999_979})
    for _ in range(2):
        started_s = time.process_time()
        with pytest.raises(RequestError):
            await checker.check(grammar, "f")
    assert time.process_time() - started_s < 0.05


async def test_a_closed_checker_leaves_no_process() -> None:
    checker = GrammarChecker()
    await checker.check(regex_grammar("a", "f"), "f")
    await asyncio.to_thread(checker.close)
    assert checker._process._process is None


@pytest.mark.parametrize(
    "text", ['%llguidance {"no_forcing": false}\nstart: "a"', 'start: %json {"uniqueItems": true}']
)
def test_directives_of_the_library_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="directives"):
        check_own_grammar(text, "f")


def test_texts_are_bounded() -> None:
    for make in (regex_grammar, check_own_grammar):
        with pytest.raises(RequestError, match="has 200000 bytes"):
            make("a" * 200_000, "f")
    for choices in ([], [""], [str(number) for number in range(6_000)]):
        with pytest.raises(RequestError, match="f "):
            choice_grammar(choices, "f")
    with pytest.raises(RequestError, match="is empty"):
        regex_grammar("", "f")
