"""Request bytes to a JSON object, with everything refused that Python's parser lets through or chokes on."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from serve_app.errors import RequestError

MAX_DEPTH = 64
_STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
_LONG_INTEGER = re.compile(r"[0-9]{21}")  # longer than any 64-bit number
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json_object(body: bytes) -> dict[str, Any]:
    """The object in `body`: at most MAX_DEPTH deep, finite numbers, whole characters. Raises RequestError."""
    content = parse_json_value(body)
    if not isinstance(content, dict):
        raise RequestError("body is not a JSON object; send {...}", field="body")
    return content


def parse_json_value(body: bytes) -> Any:
    """The one value of any kind in `body`, under the same rules. Raises RequestError."""
    if not body.strip():
        raise RequestError("body is empty; send a JSON object", field="body")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"body is not UTF-8 at byte {error.start}; send UTF-8", field="body") from error
    _check_depth(text)
    return _parse(text)


def _parse(text: str) -> Any:
    reader = _Reader()
    try:
        content = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=reader.refuse,
            parse_float=reader.read_float,
            parse_int=reader.read_int if _LONG_INTEGER.search(text) else None,
        )
    except ValueError as error:
        raise RequestError(f"body is not valid JSON: {error}", field="body") from error
    if reader.has_refused or _SURROGATE_ESCAPE.search(text):
        for path, reason in _find_bad_values(content, ""):
            raise RequestError(f"{path}: {reason}", field=path)
    return content


class _Reader:
    """Puts a marker where a number cannot be used, so that the field can be named afterwards."""

    def __init__(self) -> None:
        self.has_refused = False

    def refuse(self, literal: str) -> "_Refused":
        self.has_refused = True
        shown = literal if len(literal) <= 24 else f"{literal[:8]}… ({len(literal)} characters)"
        return _Refused(f"{shown} is not a number that can be used; send a finite number")

    def read_float(self, literal: str) -> "float | _Refused":
        value = float(literal)
        return value if math.isfinite(value) else self.refuse(literal)

    def read_int(self, literal: str) -> "int | _Refused":
        return int(literal) if len(literal) <= 20 else self.refuse(literal)


class _Refused:
    def __init__(self, reason: str) -> None:
        self.reason = reason


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        for key, _value in pairs:
            if key in seen:
                shown = _printable(key)
                raise RequestError(f"{shown}: given twice in one object; send it once", field=shown)
            seen.add(key)
    return content


def _find_bad_values(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, _Refused):
        yield path or "body", value.reason
    elif isinstance(value, str):
        if not _is_whole(value):
            yield path or "body", "holds half of a surrogate pair; send whole characters"
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = f"{path}.{_printable(key)}" if path else _printable(key)
            if not _is_whole(key):
                yield inner, "is a key with half of a surrogate pair; send whole characters"
            yield from _find_bad_values(item, inner)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _find_bad_values(item, f"{path}[{index}]")


def _is_whole(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _printable(key: str) -> str:
    return key[:64].encode("utf-8", errors="replace").decode("utf-8")


def _check_depth(text: str) -> None:
    """Counts brackets before the parser recurses into them."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth, last_string, top_key = 0, "", "body"
    for match in _STRUCTURE.finditer(text):
        token = match[0]
        if token[0] == '"':
            last_string = token if depth == 1 else last_string
            continue
        depth += 1 if token in "[{" else -1
        if depth == 2:
            top_key = last_string.strip('"')[:64] or "body"
        if depth > MAX_DEPTH:
            raise RequestError(f"{top_key}: nested more than {MAX_DEPTH} levels deep", field=top_key)
