"""Objects have the properties that their schema names, where it says nothing of others."""

from typing import Any

import pytest

from serve_app.preprocessing.closed_schema import close_objects

A = {"a": {"type": "string"}}
CLOSED = {"properties": A, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object", "properties": A}, {"type": "object", **CLOSED}),
        ({"properties": A, "required": ["a"]}, {**CLOSED, "required": ["a"]}),
        ({"properties": {"x": {"properties": A}}}, {"properties": {"x": CLOSED}, "additionalProperties": False}),
        ({"items": {"anyOf": [{"properties": A}, {"type": "null"}]}}, {"items": {"anyOf": [CLOSED, {"type": "null"}]}}),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"properties": A}}}, {"$ref": "#/$defs/x", "$defs": {"x": CLOSED}}),
        ({"items": {"allOf": [{"properties": A}], "title": "x"}}, {"items": {"allOf": [CLOSED], "title": "x"}}),
        (
            {"properties": {"properties": {"type": "object"}, "allOf": {"const": 1}}},
            {"properties": {"properties": {"type": "object"}, "allOf": {"const": 1}}, "additionalProperties": False},
        ),
    ],
)
def test_what_names_properties_is_closed(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    before = repr(schema)
    assert close_objects(schema) == expected
    assert repr(schema) == before, "the client's own is left alone"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"properties": A, "additionalProperties": True},
        {"properties": A, "additionalProperties": {"type": "integer"}},
        {"properties": A, "patternProperties": {"^x": {"type": "integer"}}},
        {"properties": A, "required": ["a", "b"]},
        {"properties": A, "minProperties": 2},
        {"allOf": [{"properties": A}, {"properties": {"b": {"type": "null"}}}]},
        {"properties": A, "anyOf": [{"required": ["a"], "properties": A}, {"properties": {"b": {"type": "null"}}}]},
        {"$ref": "#/$defs/x", "properties": A, "$defs": {"x": {"properties": {"b": {"type": "null"}}}}},
        {"anyOf": [{"properties": A}], "oneOf": [{"properties": {"b": {"type": "null"}}}]},
        {"enum": [{"properties": A}], "default": {"properties": A}},
    ],
)
def test_what_says_more_or_is_joined_stays(schema: dict[str, Any]) -> None:
    assert close_objects(schema) == schema
