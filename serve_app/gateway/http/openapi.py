"""The OpenAPI document of all HTTP routes, made from the types that read bodies and write answers.

https://spec.openapis.org/oas/v3.1.0
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import msgspec

from serve_app.gateway.http.anthropic_errors import MessagesError, is_messages_path
from serve_app.gateway.http.batch_operations import ID_PATTERNS
from serve_app.gateway.http.errors import ErrorBody, ProtocolError
from serve_app.gateway.http.operation import EVENTS, JSON, Operation
from serve_app.gateway.http.operations import operations
from serve_app.gateway.http.vllm_errors import VllmError
from serve_app.gateway.time_limits import TIMEOUT_KEY

_ERROR_TYPES = (ErrorBody, ProtocolError, MessagesError, VllmError)
_NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
_KEYS = {
    "key": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def openapi_document() -> bytes:
    """The document as JSON."""
    found = operations()
    types = [kind for operation in found for kind in _types_of(operation)]
    schemas, components = msgspec.json.schema_components(
        [*types, *_ERROR_TYPES], schema_hook=_schema_of_any, ref_template="#/components/schemas/{name}"
    )
    schema_of = dict(zip([*types, *_ERROR_TYPES], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in found:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, schema_of)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "rayshard",
            "version": version("rayshard"),
            "description": "Models of any kind, split over shards. Keys of OpenAI's API that are not listed are taken "
            "at the values that ask for nothing, and refused at others.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _KEYS},
    }
    return msgspec.json.encode(document)


def _schema_of_any(kind: type) -> dict[str, Any]:
    if kind is not object:
        raise NotImplementedError
    return {"description": "Any JSON."}


def _types_of(operation: Operation) -> list[Any]:
    contents = [*operation.answer.values(), *(operation.body or {}).values(), *(operation.other_answers or {}).values()]
    return [content for content in contents if not isinstance(content, dict)]


def _described(operation: Operation, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    def content(given: Mapping[str, Any]) -> dict[str, Any]:
        schemas = {media: kind if isinstance(kind, dict) else schema_of[kind] for media, kind in given.items()}
        if EVENTS in schemas:
            pieces = [schemas[EVENTS], schema_of[operation.error_type]]
            schemas[EVENTS] = _events_of(pieces, has_end=not is_messages_path(operation.path))
        return {media: {"schema": schema} for media, schema in schemas.items()}

    error = content({JSON: operation.error_type})
    responses = {str(status): {"description": text, "content": error} for status, text in operation.errors.items()}
    for status, kind in (operation.other_answers or {}).items():
        responses[str(status)] = {"description": "Not now.", "content": content({JSON: kind})}
    if operation.answer:
        responses["200"] = {"description": "The answer.", "content": content(operation.answer)}
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": dict(sorted(responses.items())),
        "security": [] if operation.is_open else [{}, *({name: []} for name in _KEYS)],  # {}: where no keys are set
    }
    parameters = _parameters(operation)
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": content(operation.body)}
    return described


def _events_of(pieces: list[dict[str, Any]], *, has_end: bool) -> dict[str, Any]:
    """The schema of each event of a stream: one of the pieces as JSON, or the end where that is an event of its own."""
    piece = {"type": "string", "contentMediaType": JSON, "contentSchema": {"anyOf": pieces}}
    return {
        "type": "object",
        "description": "Each event.",
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, piece]} if has_end else piece},
        "required": ["data"],
    }


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": pattern}}
        for name, pattern in (("name", _NAME_PATTERN), ("version", "^1$"), *ID_PATTERNS)
        if f"{{{name}}}" in operation.path
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in (operation.query or {}).items()
    ]
    if operation.body is not None:
        parameters.append(
            {
                "name": TIMEOUT_KEY,
                "in": "header",
                "required": False,
                "description": "Milliseconds after which the request is ended.",
                "schema": {"type": "integer", "minimum": 1, "maximum": 86_400_000},
            }
        )
    return parameters
