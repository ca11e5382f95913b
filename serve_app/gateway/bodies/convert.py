"""JSON to typed bodies; what does not fit is refused by the field's name."""

from typing import Any, TypeVar

import msgspec

from serve_app.errors import RequestError
from serve_app.gateway.bodies.json_body import parse_json_object
from serve_app.gateway.bodies.literals import literals_at
from serve_app.gateway.bodies.neutral import drop_neutral

Body = TypeVar("Body", bound=msgspec.Struct)

_MISSING = "Object missing required field `"


def parse_body(content: bytes, body_type: type[Body]) -> Body:
    """The typed body. Raises RequestError that names the field, its value and what is allowed."""
    return convert_body(parse_json_object(content), body_type)


def convert_body(given: dict[str, Any], body_type: type[Body]) -> Body:
    """The typed body of an object that is parsed already. Raises RequestError as parse_body does."""
    raw = drop_neutral(given, known=body_type.__struct_fields__)
    try:
        return msgspec.convert(raw, body_type)
    except msgspec.ValidationError as error:
        raise _request_error(str(error), raw, body_type) from error


def _request_error(reason: str, raw: dict[str, object], body_type: type[msgspec.Struct]) -> RequestError:
    """msgspec says ``Expected `int` <= 128 - at `$.n` ``."""
    reason, _, location = reason.partition(" - at `")
    path = location.rstrip("`").removeprefix("$").removeprefix(".").replace("[...]", "")
    for start, advice in (("Object contains unknown field `", "is unknown; leave it out"), (_MISSING, "is missing")):
        if reason.startswith(start):
            name = reason.removeprefix(start).rstrip("`")
            path = f"{path}.{name}" if path else name
            return RequestError(f"{path} {advice}", field=path)
    allowed = reason.replace("`", "").replace("Expected", "expected", 1)
    if reason.startswith("Invalid enum value"):
        allowed = f"expected one of {', '.join(literals_at(body_type, location.rstrip('`')))}"
    return RequestError(f"{path}={_shown_value(raw, path)} cannot be used: {allowed}", field=path or "body")


def _shown_value(raw: object, path: str) -> str:
    for step in path.replace("[", ".[").split("."):
        if isinstance(raw, dict) and step in raw:
            raw = raw[step]
        elif isinstance(raw, list) and step.strip("[]").isdecimal():
            raw = raw[int(step.strip("[]"))]
    if isinstance(raw, list | dict):
        return f"({type(raw).__name__} of {len(raw)})"
    shown = msgspec.json.encode(raw).decode()
    return shown if len(shown) <= 40 else f"{shown[:40]}…"
