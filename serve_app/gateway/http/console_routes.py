"""The console: a page at `/` and `/console`, and the files that it loads. They hold no secret and name no model.

The page's own policy lets it load and call nothing but this server, and no page frames it
(https://www.w3.org/TR/CSP3/). What it shows of the models it asks for with the visitor's key.
"""

from collections.abc import Awaitable, Callable
from functools import cache
from hashlib import blake2b
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE_PATHS = ("/", "/console")
_FILES = Path(__file__).parents[1] / "console"
_PAGE = "index.html"
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # kept, and asked about by its tag before it is used: a new version is seen at once
}


def console_routes() -> list[Route]:
    """One for each file, read once; none needs a key."""
    files = _files()
    pages = [Route(path, _endpoint(_PAGE, files[_PAGE])) for path in PAGE_PATHS]
    others = [name for name in files if name != _PAGE]
    return pages + [Route(f"/console/{name}", _endpoint(name, files[name])) for name in others]


def _endpoint(name: str, content: bytes) -> Callable[[Request], Awaitable[Response]]:
    """Answers with a file, or with 304 to a browser that has it."""
    tag = f'"{blake2b(content, digest_size=12).hexdigest()}"'
    headers, media_type = {**_HEADERS, "etag": tag}, _MEDIA_TYPES[Path(name).suffix]

    async def answer(request: Request) -> Response:
        if _has_tag(request.headers.get("if-none-match", ""), tag):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return answer


def _has_tag(given: str, tag: str) -> bool:
    """Whether a list of entity tags names this one (RFC 9110, 13.1.2: compared weakly)."""
    return given.strip() == "*" or tag in (one.strip().removeprefix("W/") for one in given.split(","))


@cache
def _files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(_FILES.iterdir()) if path.suffix in _MEDIA_TYPES}
