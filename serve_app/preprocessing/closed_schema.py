"""Schemas whose objects have the properties that are named and no others, unless something is said of others.

JSON Schema allows any others then, which a model that is held to the schema may write for ever; most who write schemas
do not mean them. (xgrammar's strict mode, which is vLLM's default, takes schemas so too.) What fits fits the schema as
it was written, too.
"""

import json
from collections.abc import Iterator
from typing import Any

from serve_app.preprocessing.schema_check import subschemas

_SAY_SOMETHING = ("additionalProperties", "patternProperties")
_JOINING = ("allOf", "anyOf", "oneOf", "$ref")
_OF_OBJECTS = ("properties", "required", "minProperties", "maxProperties", *_SAY_SOMETHING)


def close_objects(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that check_schema has passed, closed; as it is where several parts of it hold for one object at once."""
    made: dict[str, Any] = json.loads(json.dumps(schema))
    parts = list(_all(made))
    if any(_joins(one) for one in parts):
        return schema
    for one in parts:
        if _is_open(one):
            one["additionalProperties"] = False
    return made


def _all(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    waiting: list[object] = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting.extend(part for part, _path in subschemas(one, ""))


def _joins(schema: dict[str, Any]) -> bool:
    """Whether an object has to fit several schemas, each of which may name some of its properties."""
    num_joining = sum(key in schema for key in _JOINING)
    is_of_objects = any(key in schema for key in _OF_OBJECTS)
    is_all_of_several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
    return is_all_of_several or num_joining > 1 or (num_joining == 1 and is_of_objects)


def _is_open(schema: dict[str, Any]) -> bool:
    """Whether it names properties, says nothing of others, and asks for none of them."""
    named = schema.get("properties")
    if not isinstance(named, dict) or not named or any(key in schema for key in _SAY_SOMETHING):
        return False
    required, least = schema.get("required"), schema.get("minProperties")
    asks_for_others = isinstance(required, list) and any(name not in named for name in required)
    return not asks_for_others and not (isinstance(least, int) and least > len(named))
