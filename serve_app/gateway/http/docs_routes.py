"""`/openapi.json`, and the same as a page without scripts."""

from functools import cache
from html import escape
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.gateway.http.openapi import openapi_document
from serve_app.gateway.http.shell import json_bytes

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; }
details { border: 1px solid color-mix(in srgb, currentColor 25%, transparent); border-radius: 6px; margin: .5rem 0; }
summary { padding: .5rem .75rem; cursor: pointer; }
details > div { padding: 0 1rem 1rem; overflow-x: auto; }
code { font: .9em ui-monospace, monospace; }
b.method { display: inline-block; min-width: 3.5rem; font: bold .85em ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid color-mix(in srgb, currentColor 15%, transparent); }
"""


def docs_routes() -> list[Route]:
    """They name no model and need no key."""
    document, page = _document_and_page()

    async def as_json(_request: Request) -> Response:
        return json_bytes(document)

    async def as_page(_request: Request) -> Response:
        return Response(page, media_type="text/html", headers={"content-security-policy": _POLICY})

    return [Route("/openapi.json", as_json), Route("/docs", as_page)]


@cache
def _document_and_page() -> tuple[bytes, bytes]:
    document = openapi_document()
    return document, _page(msgspec.json.decode(document)).encode()


def _page(document: dict[str, Any]) -> str:
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            shown = _operation(method.upper(), path, operation, document["components"]["schemas"])
            by_tag.setdefault(operation["tags"][0], []).append(shown)
    sections = [f"<h2>{escape(tag)}</h2>{''.join(shown)}" for tag, shown in by_tag.items()]
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>rayshard: HTTP</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>rayshard {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"
        '<p>For programs: <a href="openapi.json">openapi.json</a> (OpenAPI 3.1).</p>'
        f"{''.join(sections)}</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    parts = []
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h4>Body: {escape(media)}</h4>{_fields(content['schema'], schemas)}")
    for status, response in operation["responses"].items():
        shown = "".join(
            f"<br><code>{escape(media)}</code> {_kind(content['schema'])}"
            for media, content in response["content"].items()
        )
        parts.append(f"<p><b>{status}</b> {escape(response['description'])}{shown}</p>")
    answer = operation["responses"].get("200", {"content": {}})["content"].get("application/json", {}).get("schema", {})
    if "$ref" in answer:
        parts.append(f"<h4>Answer</h4>{_fields(answer, schemas)}")
    return (
        f'<details><summary><b class="method">{method}</b> <code>{escape(path)}</code> '
        f"{escape(operation['summary'])}</summary><div>{''.join(parts)}</div></details>"
    )


def _fields(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    found = schemas.get(_name_of(schema), schema)
    rows = [
        f"<tr><td><code>{escape(name)}</code></td><td>{_kind(field)}</td>"
        f"<td>{'needed' if name in found.get('required', ()) else ''}</td></tr>"
        for name, field in found.get("properties", {}).items()
    ]
    return f"<table>{''.join(rows)}</table>" if rows else f"<p>{_kind(schema)}</p>"


def _kind(schema: dict[str, Any]) -> str:
    """What a value may be, in a few words."""
    if "$ref" in schema:
        return f"<code>{escape(_name_of(schema))}</code>"
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(repr(one))}</code>" for one in schema["enum"])
    kind = str(schema.get("type", "any JSON"))
    if kind == "array" and schema.get("items"):
        return f"list of {_kind(schema['items'])}"
    bounds = [
        f"{sign} {schema[key]}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in schema
    ]
    return escape(" ".join([kind, *bounds]))


def _name_of(schema: dict[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]
