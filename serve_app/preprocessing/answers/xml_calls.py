"""Calls as Qwen3-Coder writes them: `<function=name>`, then `<parameter=key>` and its value for each argument.

A value is a text as it stands, without the line ends next to its tags. The tool's schema says which are something else.
"""

import json
from collections.abc import Mapping
from typing import Any

from serve_app.preprocessing.answers.calls_sink import CallsSink
from serve_app.preprocessing.answers.text_reader import Reading, Stops, TextReader

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_VALUE_ENDS = Stops(
    [end for one in (_PARAMETER_END, _FUNCTION_END, _PARAMETER) for end in (f"\r\n{one}", f"\n{one}", one)]
)
_MAX_KEY_CHARS = 1024


def read_xml_calls(reader: TextReader, sink: CallsSink) -> Reading[None]:
    """Calls up to the first text that is none, which stays unread."""
    num_before = sink.num_calls
    while (yield from _read_call(reader, sink)):
        reader.take()
        if sink.is_full:
            return
    if sink.num_calls > num_before:
        reader.position = 0


def _read_call(reader: TextReader, sink: CallsSink) -> Reading[bool]:
    yield from reader.skip_blanks()
    if not (yield from reader.skip(_FUNCTION)):
        return False
    name = yield from _read_tag(reader)
    if name is None or name not in sink.tools.parameters:
        return False
    reader.take()
    sink.begin(name)
    properties = sink.tools.parameters[name].get("properties")
    known = properties if isinstance(properties, Mapping) else {}
    before = "{"
    yield from reader.skip_blanks()
    while (yield from reader.skip(_PARAMETER)):
        key = yield from _read_tag(reader)
        if key is None:
            reader.position = 0
            break
        reader.take()
        sink.add(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
        before = ", "
        if not (yield from _read_argument(reader, sink, _types(known.get(key)))):
            return True  # it breaks off
        yield from reader.skip_blanks()
    sink.add("{}" if before == "{" else "}")
    is_whole = yield from reader.skip(_FUNCTION_END)
    if not is_whole:
        reader.position = 0
    sink.end(is_cut=not is_whole and reader.is_ended)
    return True


def _read_tag(reader: TextReader) -> Reading[str | None]:
    """The name in a tag that has been begun, and the tag's end."""
    start = reader.position
    while reader.position - start <= _MAX_KEY_CHARS:
        following = yield from reader.peek()
        if following in ("", "<", "\n"):
            return None
        reader.position += 1
        if following == ">":
            return reader.text[start : reader.position - 1].strip()
    return None


def _read_argument(reader: TextReader, sink: CallsSink, types: frozenset[str]) -> Reading[bool]:
    """One value and its end; False when the answer ends in it."""
    if not (yield from reader.skip("\r\n")):
        yield from reader.skip("\n")
    reader.take()
    value = _Value(sink, types)
    end = yield from reader.read_to(_VALUE_ENDS, value.add)
    value.end()
    if end.endswith(_PARAMETER_END):
        reader.position = len(end)
    else:
        reader.position = len(end) - len(end.lstrip("\r\n"))
    reader.take()
    return bool(end)


class _Value:
    """One argument, which becomes JSON while it grows: texts piece by piece, others when they are whole."""

    def __init__(self, sink: CallsSink, types: frozenset[str]) -> None:
        self._sink = sink
        self._types = types
        self._held: list[str] = []  # of what may be something else than a text
        self._is_text = not types - {"string"}
        if self._is_text:
            sink.add('"')

    def add(self, text: str) -> None:
        """A piece of what is written."""
        if self._is_text:
            self._sink.add(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._held.append(text)

    def end(self) -> None:
        """The value is whole."""
        if self._is_text:
            self._sink.add('"')
        else:
            self._sink.add(_as_json("".join(self._held), self._types))


def _as_json(text: str, types: frozenset[str]) -> str:
    """The value that a text says, where the schema allows it; else the text."""
    lowered = text.strip().lower()
    if "boolean" in types and lowered in ("true", "false"):
        return lowered
    if "null" in types and lowered in ("null", "none"):
        return "null"
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    is_allowed = not isinstance(value, str) and (_type_of(value) in types or "string" not in types)
    return text.strip() if is_allowed else json.dumps(text, ensure_ascii=False)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _type_of(value: object) -> str:
    kinds = ((bool, "boolean"), (int, "integer"), (float, "number"), (dict, "object"), (list, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def _types(schema: object) -> frozenset[str]:
    """The types that a property may have, as far as its schema says it plainly; empty: a text."""
    if not isinstance(schema, Mapping):
        return frozenset()
    given: Any = schema.get("type")
    types = {given} if isinstance(given, str) else {one for one in given or () if isinstance(one, str)}
    for key in ("anyOf", "oneOf"):
        for one in schema.get(key) or ():
            kind = one.get("type") if isinstance(one, Mapping) else None
            types |= {kind} if isinstance(kind, str) else set()
    return frozenset(types | ({"integer"} if "number" in types else set()))
