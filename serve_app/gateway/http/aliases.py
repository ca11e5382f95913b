"""Other names of our paths, as clients of vLLM, llama.cpp, Cohere and Kubernetes call them."""

from collections.abc import Iterable

from starlette.routing import Route

ALIASES = {
    "/completions": "/v1/completions",
    "/chat/completions": "/v1/chat/completions",
    "/responses": "/v1/responses",
    "/embeddings": "/v1/embeddings",
    "/classify": "/v1/classify",
    "/score": "/v1/score",
    "/rerank": "/v1/rerank",
    "/v2/rerank": "/v1/rerank",
    "/tokenize": "/v1/tokenize",
    "/detokenize": "/v1/detokenize",
    "/v1/models/": "/v1/models",
    "/healthz": "/health",
}
OTHER_THAN_PROTOCOL = frozenset({"/v2/rerank", "/v2/embed"})  # Cohere's, among those of the Open Inference Protocol


def alias_routes(routes: Iterable[Route]) -> list[Route]:
    """A route for each alias, to the endpoint that has its path among `routes`."""
    by_path = {route.path: route for route in routes}
    found = [(alias, by_path[path]) for alias, path in ALIASES.items()]
    return [Route(alias, route.endpoint, methods=list(route.methods or ())) for alias, route in found]


def is_protocol_path(path: str) -> bool:
    """Whether the Open Inference Protocol says what is answered here."""
    return (path.startswith("/v2/") and path not in OTHER_THAN_PROTOCOL) or path == "/v2"
