"""Tools as a constraint: JSON schemas of what a model may write to call them.

https://json-schema.org/draft/2020-12/json-schema-core
"""

from collections.abc import Mapping
from typing import Any

_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # their keys are the user's
_OF_DATA = ("const", "enum", "default", "examples")  # what they hold is no schema


def calls_schema(
    parameters: Mapping[str, Mapping[str, Any]], *, only: str | None = None, is_parallel: bool = True
) -> dict[str, Any]:
    """Of a list of calls, each `{"name": ..., "parameters": {...}}`, as the format `json` reads them.

    `parameters` are schemas by the names of the tools; `only` is the one that is to be called. References inside a
    tool's schema go on pointing into it.
    """
    names = list(parameters) if only is None else [only]
    schema: dict[str, Any] = {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [_call_schema(name, "parameters") for name in names]},
        "$defs": _definitions(parameters, names),
    }
    return schema if is_parallel and only is None else {**schema, "maxItems": 1}


def call_schema(parameters: Mapping[str, Mapping[str, Any]], arguments_key: str) -> dict[str, Any]:
    """Of one call, `{"name": ..., arguments_key: {...}}`."""
    calls = [_call_schema(name, arguments_key) for name in parameters]
    return {"anyOf": calls, "$defs": _definitions(parameters, list(parameters))}


def _definitions(parameters: Mapping[str, Mapping[str, Any]], names: list[str]) -> dict[str, Any]:
    return {name: moved_schema(parameters[name], f"#/$defs/{name}") for name in names}


def _call_schema(name: str, arguments_key: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, arguments_key: {"$ref": f"#/$defs/{name}"}},
        "required": ["name", arguments_key],
        "additionalProperties": False,
    }


def moved_schema(schema: Any, place: str) -> Any:
    """A schema that stood at the root, as it is at another place. Without recursion: its depth is the client's."""
    root: list[Any] = [schema]
    waiting: list[tuple[Any, Any, bool]] = [(root, 0, False)]  # where it stands, and whether its keys are names
    while waiting:
        holder, key, has_names = waiting.pop()
        value = holder[key]
        if isinstance(value, Mapping):
            copied: Any = dict(value)
            reference = copied.get("$ref")
            if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
                copied["$ref"] = place + reference[1:]
            waiting += [
                (copied, one, not has_names and one in _OF_NAMES) for one in copied if has_names or one not in _OF_DATA
            ]
        elif isinstance(value, list):
            copied = list(value)
            waiting += [(copied, index, False) for index in range(len(copied))]
        else:
            continue
        holder[key] = copied
    return root[0]
