"""Calls as `xml_calls` reads them, held to the schemas of their arguments, as the grammar library's Lark."""

import json
from collections.abc import Mapping
from typing import Any

from serve_app.errors import ConfigError
from serve_app.preprocessing.grammar_text import json_rule

_TEXT_KEYS = frozenset(("type", "title", "description", "default", "examples", "enum", "const"))
_NOT_OF_ARGUMENTS = ("$ref", "allOf", "anyOf", "oneOf", "patternProperties", "minProperties", "maxProperties")
_SHARED_RULES = r"""LINE: /(\r?\n)?/
any_argument: "<parameter=" /[^<>\n]{1,256}/ ">" LINE any_text LINE
any_text[lazy]: /(?s:.*)<\/parameter>/
"""


def xml_call_rules(parameters: Mapping[str, Mapping[str, Any]]) -> str:
    """The rule `call` and what it needs: arguments in the order of their schema, those that may be left out or not.

    Raises ConfigError for schemas that a call in this form cannot be held to: a text stands there as it is.
    """
    calls = " | ".join(f"call_{index}" for index in range(len(parameters)))
    rules = [f"call: {calls}\n{_SHARED_RULES}"]
    for index, (name, schema) in enumerate(parameters.items()):
        _check(name, schema)
        parts = []
        for place, key in enumerate(schema.get("properties", {})):
            rule = f"argument_{index}_{place}"
            rules.append(_argument_rule(rule, name, key, schema))
            parts.append(rule if key in schema.get("required", ()) else f"{rule}?")
        if "properties" not in schema and schema.get("additionalProperties", True) is True:
            parts.append("any_argument*")
        begin = json.dumps(f"<function={name}>")
        rules.append(f'call_{index}: {" ".join([begin, "LINE", *parts])} "</function>"\n')
    return "".join(rules)


def _argument_rule(rule: str, tool: str, key: str, schema: Mapping[str, Any]) -> str:
    begin = json.dumps(f"<parameter={key}>", ensure_ascii=False)
    value = _resolved(schema["properties"][key], schema)
    kinds = _kinds(value)
    if not kinds or ("string" in kinds and not _is_any_text(value)):
        raise ConfigError(
            f"tools: {tool}'s argument {key} cannot be held to its schema in the way in which this model writes calls, "
            "where texts stand as they are; leave strict out, say its type alone or an enum, or send tool_choice: "
            '"required"',
            field="tools",
        )
    texts = value.get("enum", [value["const"]] if "const" in value else None)
    if "string" not in kinds:
        shared = {one: schema[one] for one in ("$defs", "definitions") if one in schema}
        content = f'{json_rule({**shared, **value})} LINE "</parameter>"'
    elif texts is not None:
        written = [json.dumps("null" if one is None else one, ensure_ascii=False) for one in texts]
        content = f'({" | ".join(written)}) LINE "</parameter>"'
    else:
        return f"{rule}: {begin} LINE {rule}_text LINE\n{rule}_text[lazy]: /(?s:.*)<\\/parameter>/\n"
    return f"{rule}: {begin} LINE {content} LINE\n"


def _check(tool: str, schema: Mapping[str, Any]) -> None:
    found = [key for key in _NOT_OF_ARGUMENTS if key in schema]
    missing = set(schema.get("required", ())) - set(schema.get("properties", {}))
    if found or missing:
        what = f"{found[0]} at the top of its parameters" if found else f"required={sorted(missing)[0][:64]!r}"
        raise ConfigError(
            f"tools: {tool}'s calls cannot be held to {what} in the way in which this model writes them; leave strict "
            'out, list its arguments in properties, or send tool_choice: "required"',
            field="tools",
        )


def _resolved(value: Any, schema: Mapping[str, Any]) -> dict[str, Any]:
    """What a reference to a definition of the schema stands for."""
    for _ in range(8):
        reference = value.get("$ref") if isinstance(value, Mapping) else None
        parts = reference.split("/") if isinstance(reference, str) else []
        if len(parts) != 3 or parts[1] not in ("$defs", "definitions"):
            break
        value = schema.get(parts[1], {}).get(parts[2])
    return dict(value) if isinstance(value, Mapping) else {}


def _kinds(value: Mapping[str, Any]) -> set[str]:
    """The types that it may have; empty: that is not said plainly."""
    given = value.get("type")
    if given is not None:
        return {given} if isinstance(given, str) else set(given)
    if "enum" in value or "const" in value:
        return {_kind_of(one) for one in value.get("enum", [value.get("const")])}
    found = [_kinds(one) if isinstance(one, Mapping) else set() for one in value.get("anyOf", ())]
    return set().union(*found) if all(found) else set()


def _kind_of(value: object) -> str:
    kinds = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (dict, "object"), (list, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def _is_any_text(value: Mapping[str, Any]) -> bool:
    """Whether any text fits, or texts that are listed: null is one of them, written so."""
    if "anyOf" in value:
        several = value["anyOf"]
        return set(value) <= {*_TEXT_KEYS, "anyOf"} and all(_is_any_text(one) and "enum" not in one for one in several)
    if not set(value) <= _TEXT_KEYS or not _kinds(value) <= {"string", "null"}:
        return False
    return all(one is None or isinstance(one, str) for one in value.get("enum", [value.get("const")]))
