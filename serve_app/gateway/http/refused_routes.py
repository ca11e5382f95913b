"""Paths that known clients call and that are not served: each says why, and what to do."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.errors import RequestError

_IN_FILES = "models come from serve files here, not through the API; write it into one and run rayshard deploy"
REFUSED = {  # method and path: why
    ("POST", "/v1/moderations"): "no model here judges what is harmful; serve a classifier and call /v1/classify",
    ("POST", "/api/pull"): _IN_FILES,
    ("POST", "/api/push"): "models are not handed to registries here; copy their directories",
    ("POST", "/api/create"): _IN_FILES,
    ("POST", "/api/copy"): _IN_FILES,
    ("POST", "/api/blobs/{name:path}"): _IN_FILES,
    ("POST", "/api/embeddings"): "it is the old form of /api/embed; send the text to that, as input",
    ("DELETE", "/api/delete"): "models come from serve files here, not through the API; take it out of its file and "
    "run rayshard deploy",
}


def refused_routes() -> list[Route]:
    """The paths."""
    return [Route(path, _refusal(path, reason), methods=[method]) for (method, path), reason in REFUSED.items()]


def _refusal(path: str, reason: str) -> Callable[[Request], Awaitable[Response]]:
    async def refuse(_request: Request) -> Response:
        raise RequestError(f"{path.partition('/{')[0]} is not served: {reason}")

    return refuse
