"""What a model may write when it has to call a tool, checked by a validator of JSON schemas."""

import json
from typing import Any

import jsonschema
import pytest

from serve_app.preprocessing.answers.call_schema import calls_schema

TREE: dict[str, Any] = {
    "type": "object",
    "properties": {"value": {"$ref": "#/$defs/Number"}, "next": {"$ref": "#"}, "default": {"$ref": "#/$defs/Number"}},
    "required": ["value"],
    "additionalProperties": False,
    "$defs": {"Number": {"type": "integer", "enum": [1, 2]}},
}
TOOLS: dict[str, dict[str, Any]] = {
    "walk": TREE,
    "stop": {"type": "object", "properties": {"why": {"const": {"$ref": "#/x"}}}},
}


def is_allowed(answer: object, **choice: Any) -> bool:
    schema = calls_schema(TOOLS, **choice)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).is_valid(answer)


def call(name: str, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "parameters": parameters}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([call("walk", value=1)], True),
        ([call("walk", value=1, next={"value": 2, "next": {"value": 1}})], True),
        ([call("walk", value=1, next={"value": 3})], False),
        ([call("walk", value=1, default=2)], True),
        ([call("walk", value=1, default=3)], False),
        ([call("stop", why={"$ref": "#/x"})], True),
        ([call("walk", value=1), call("stop")], True),
        ([call("stop", value=3)], True),
        ([call("walk", value=1, other=2)], False),
        ([call("run")], False),
        ([{"name": "stop"}], False),
        ([{**call("stop"), "id": 1}], False),
        ([], False),
        (call("stop"), False),
    ],
)
def test_calls_are_of_the_tools_and_as_their_schemas_say(answer: object, expected: bool) -> None:
    assert is_allowed(answer) is expected


def test_one_tool_may_be_the_only_one() -> None:
    assert is_allowed([call("stop")], only="stop")
    assert not is_allowed([call("walk", value=1)], only="stop")
    assert not is_allowed([call("stop"), call("stop")], only="stop")


def test_one_call_may_be_the_only_one() -> None:
    assert is_allowed([call("stop")], is_parallel=False)
    assert not is_allowed([call("stop"), call("stop")], is_parallel=False)


def test_the_given_schemas_stay_as_they_are() -> None:
    before = json.dumps(TOOLS)
    calls_schema(TOOLS)
    assert json.dumps(TOOLS) == before


def test_schemas_may_be_deep_and_wide() -> None:
    deep: dict[str, Any] = {"$ref": "#"}
    for _ in range(50_000):
        deep = {"items": deep}
    wide = {"properties": {f"p{number}": {"$ref": "#/$defs/a"} for number in range(10_000)}}
    made = calls_schema({"deep": deep, "wide": wide})["$defs"]
    assert made["wide"]["properties"]["p9999"] == {"$ref": "#/$defs/wide/$defs/a"}
    inner = made["deep"]
    while "items" in inner:
        inner = inner["items"]
    assert inner == {"$ref": "#/$defs/deep"}
