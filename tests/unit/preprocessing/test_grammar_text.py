"""What stands in the grammars of schemas, patterns and choices."""

import json
import re

import pytest

from serve_app.preprocessing.grammar_text import JSON_WHITESPACE, choice_grammar, regex_grammar, schema_grammar


@pytest.mark.parametrize("blank", ["", " ", "\n", "\r\n", "\n        ", "\n\t\t"])
def test_a_space_or_an_indent_may_stand_between_the_parts_of_json(blank: str) -> None:
    assert re.fullmatch(JSON_WHITESPACE, blank)


@pytest.mark.parametrize("blank", ["  ", "\n\n", " \n", "\n" + " " * 65])
def test_no_model_writes_blanks_for_ever(blank: str) -> None:
    assert not re.fullmatch(JSON_WHITESPACE, blank)


def test_a_schema_is_shown_as_it_is_beside_the_options() -> None:
    schema: dict[str, object] = {"type": "string", "enum": ["\n", "é"]}
    head, _, content = schema_grammar(schema, has_whitespace=False).partition("%json ")
    assert head.endswith("start: ")
    assert json.loads(content) == {"x-guidance": {"lenient": False, "whitespace_flexible": False}, **schema}


def test_texts_are_quoted_and_patterns_keep_their_slashes() -> None:
    assert choice_grammar(['a"b', "c\n", 'a"b'], "f").endswith('start: "a\\"b" | "c\\n"')
    assert regex_grammar("a/b", "f").endswith("start: /a\\/b/")
