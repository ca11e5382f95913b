"""Which JSON schemas answers can be held to: every keyword counts, so that none is passed over."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from serve_app.errors import RequestError
from serve_app.preprocessing.grammar_limits import MAX_GRAMMAR_BYTES, MAX_PROPERTIES, MAX_SUBSCHEMAS, MAX_VALUES

_HELD_TO = frozenset(
    (
        *("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions"),
        *("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
        *("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
        *("minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    )
)
_SAY_NOTHING_OF_VALUES = frozenset(
    (
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"),
        *("$schema", "$id", "id", "$comment", "$anchor", "contentMediaType", "contentEncoding"),
        "strict",  # of a tool, which many write among its parameters
    )
)
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems")
_TYPES = frozenset(("string", "number", "integer", "boolean", "null", "object", "array"))


@dataclass(slots=True)
class _Counts:
    num_schemas: int = 0
    num_properties: int = 0
    num_values: int = 0
    unknown: dict[str, str] = field(default_factory=dict)  # where, by keyword


def check_schema(schema: object, where: str) -> None:
    """Raises RequestError for one that is too large, or asks for what answers cannot be held to."""
    if not isinstance(schema, dict | bool):
        raise RequestError(f"{where} is not a JSON schema; send an object", field=where)
    if schema is False:
        raise RequestError(f"{where} is false, which no value fits; send another", field=where)
    num_bytes = len(json.dumps(schema, ensure_ascii=False).encode())
    if num_bytes > MAX_GRAMMAR_BYTES:
        raise RequestError(f"{where} has {num_bytes} bytes; send at most {MAX_GRAMMAR_BYTES}", field=where)
    counts = _Counts()
    waiting: list[tuple[object, str]] = [(schema, where)]
    while waiting:
        one, path = waiting.pop()
        counts.num_schemas += 1
        if isinstance(one, dict):
            _look_at(one, path, where, counts)
            waiting.extend(subschemas(one, path))
        _refuse_many(counts, where)
    if counts.unknown:
        listed = ", ".join(f"{key!r} at {path}" for key, path in list(counts.unknown.items())[:16])
        raise RequestError(
            f"{where}: an answer cannot be held to {listed}; leave it out, or say it by other keywords", field=where
        )


def subschemas(schema: dict[str, Any], path: str) -> Iterator[tuple[object, str]]:
    """The schemas in one, and where each is."""
    for key in _BY_NAME:
        if isinstance(named := schema.get(key), dict):
            yield from ((one, f"{path}.{key}.{name}") for name, one in named.items())
    for key in _LISTS:
        if isinstance(several := schema.get(key), list):
            yield from ((one, f"{path}.{key}[{index}]") for index, one in enumerate(several))
    for key in _SINGLE:
        if isinstance(schema.get(key), dict):
            yield schema[key], f"{path}.{key}"
    if isinstance(items := schema.get("items"), list):  # as draft 7 has it
        yield from ((one, f"{path}.items[{index}]") for index, one in enumerate(items))


def _look_at(schema: dict[str, Any], path: str, where: str, counts: _Counts) -> None:
    for key in schema.keys() - _HELD_TO - _SAY_NOTHING_OF_VALUES:
        counts.unknown.setdefault(str(key)[:40], path[:200])
    reference = schema.get("$ref")
    if reference is not None and not (isinstance(reference, str) and reference.startswith("#")):
        raise RequestError(
            f"{path}.$ref={str(reference)[:80]!r} is not in this schema; nothing is fetched: write it into $defs",
            field=where,
        )
    if "additionalItems" in schema and not isinstance(schema.get("items"), list):
        raise RequestError(f"{path}.additionalItems counts beside a list of items only; send items", field=where)
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind not in _TYPES:
            raise RequestError(f"{path}.type={str(kind)[:40]!r} is not one of {sorted(_TYPES)}", field=where)
    for key in ("properties", "required"):
        counts.num_properties += len(schema[key]) if isinstance(schema.get(key), dict | list) else 0
    values = schema.get("enum")
    counts.num_values += len(values) if isinstance(values, list) else 0


def _refuse_many(counts: _Counts, where: str) -> None:
    for number, most, what in (
        (counts.num_properties, 2 * MAX_PROPERTIES, "names in properties and required"),
        (counts.num_values, MAX_VALUES, "values in enums"),
        (counts.num_schemas, MAX_SUBSCHEMAS, "schemas in it"),
    ):
        if number > most:
            raise RequestError(f"{where} has more than {most} {what}; send a smaller one", field=where)
