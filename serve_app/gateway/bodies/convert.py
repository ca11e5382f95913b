"""JSON to typed bodies; what does not fit is refused by the field's name."""

from typing import Any, TypeVar, get_args

import msgspec

from serve_app.errors import RequestError
from serve_app.gateway.bodies.anthropic import (
    Effort,
    FormatName,
    ServiceTier,
    ThinkingDisplay,
    ThinkingType,
    ToolChoiceType,
)
from serve_app.gateway.bodies.cohere import CohereCitations, CohereSafety, CohereToolChoice
from serve_app.gateway.bodies.explain import Method, Output, Replacement
from serve_app.gateway.bodies.inference import EmbedDtype, Endianness
from serve_app.gateway.bodies.json_body import parse_json_object
from serve_app.gateway.bodies.known_apis import CohereCut, CohereFormat, Side
from serve_app.gateway.bodies.neutral import drop_neutral
from serve_app.gateway.bodies.openai import EncodingFormat, PartType, Role, TruncationSide
from serve_app.gateway.bodies.structured import FormatType
from serve_app.preprocessing.text_spans import Unit

Body = TypeVar("Body", bound=msgspec.Struct)

_ENUMS = {
    "role": get_args(Role),
    "type": get_args(PartType),
    "response_format.type": get_args(FormatType),
    "encoding_format": get_args(EncodingFormat),
    "embed_dtype": get_args(EmbedDtype),
    "endianness": get_args(Endianness),
    "truncation_side": get_args(TruncationSide),
    "embedding_types": get_args(CohereFormat),
    "truncate": get_args(CohereCut),
    "truncation_direction": get_args(Side),
    "raw_scores": ("false",),
    "method": get_args(Method),
    "unit": get_args(Unit),
    "replacement": get_args(Replacement),
    "output": get_args(Output),
    "thinking.type": get_args(ThinkingType),
    "display": get_args(ThinkingDisplay),
    "tool_choice.type": get_args(ToolChoiceType),
    "effort": get_args(Effort),
    "output_config.format.type": get_args(FormatName),
    "service_tier": get_args(ServiceTier),
    "citation_options.mode": get_args(CohereCitations),
    "safety_mode": get_args(CohereSafety),
    "tool_choice": get_args(CohereToolChoice),
}
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
        raise _request_error(str(error), raw) from error


def _request_error(reason: str, raw: dict[str, object]) -> RequestError:
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
        values = _ENUMS.get(path) or _ENUMS[path.rpartition(".")[2].partition("[")[0]]
        allowed = f"expected one of {', '.join(values)}"
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
