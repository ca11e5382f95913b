"""Schemas that are refused, and why."""

from typing import Any

import pytest

from serve_app.errors import RequestError
from serve_app.preprocessing.schema_check import check_schema

FITTING: list[Any] = [
    True,
    {},
    {"type": ["string", "null"], "description": "x", "default": 1, "title": "t", "examples": []},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
    {"type": "object", "properties": {"uniqueItems": {"type": "string"}}, "required": ["uniqueItems"]},
    {"enum": [{"not": "a keyword here"}]},
    {"type": "object", "strict": True, "properties": {}},
]
REFUSED: list[tuple[Any, str]] = [
    (False, "no value fits"),
    ([], "not a JSON schema"),
    ({"uniqueItems": True}, "'uniqueItems' at s"),
    ({"items": {"contains": {}}}, "'contains' at s.items"),
    ({"properties": {"a": {"anyOf": [{}, {"nullable": True}]}}}, r"'nullable' at s.properties.a.anyOf\[1\]"),
    ({"$defs": {"d": {"if": {}}}}, "'if' at s.\\$defs.d"),
    ({"x-guidance": {"lenient": True}}, "'x-guidance' at s"),
    ({"$ref": "https://example.com/schema.json"}, "nothing is fetched"),
    ({"$ref": "file:///etc/passwd"}, "nothing is fetched"),
    ({"items": [{"const": 1}, {"contains": {}}]}, r"'contains' at s.items\[1\]"),
    ({"prefixItems": [{"const": 1}], "additionalItems": False}, "additionalItems counts beside"),
    ({"type": "text"}, "s.type='text' is not one of"),
    ({"properties": {f"p{number}": {} for number in range(10_000)}}, "more than 1000 names"),
    ({"enum": list(range(20_000))}, "more than 5000 values"),
    ({"anyOf": [{"const": number} for number in range(3_000)]}, "more than 2000 schemas"),
    ({"enum": ["x" * 200_000]}, "has 200014 bytes"),
]


@pytest.mark.parametrize("schema", FITTING)
def test_what_answers_can_be_held_to_is_taken(schema: Any) -> None:
    check_schema(schema, "s")


@pytest.mark.parametrize(("schema", "reason"), REFUSED)
def test_what_they_cannot_be_held_to_is_named(schema: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        check_schema(schema, "s")
    assert caught.value.field == "s"
