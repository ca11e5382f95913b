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
    "/cohere/v2/chat": "/v2/chat",
    "/cohere/v2/embed": "/v2/embed",
    "/cohere/v2/rerank": "/v1/rerank",
    "/tokenize": "/v1/tokenize",
    "/detokenize": "/v1/detokenize",
    "/v1/models/": "/v1/models",
    "/healthz": "/health",
}
_OWN_COHERE_PATHS = frozenset({"/v2/rerank", "/v2/embed", "/v2/chat"})  # among those of the Open Inference Protocol
COHERE_PATHS = _OWN_COHERE_PATHS | {f"/cohere{path}" for path in _OWN_COHERE_PATHS}


def alias_routes(routes: Iterable[Route]) -> list[Route]:
    """A route for each alias, to the endpoint that has its path among `routes`."""
    by_path = {route.path: route for route in routes}
    found = [(alias, by_path[path]) for alias, path in ALIASES.items()]
    return [Route(alias, route.endpoint, methods=list(route.methods or ())) for alias, route in found]


def is_protocol_path(path: str) -> bool:
    """Whether errors are `{"error": message}` here, as the Open Inference Protocol and Ollama have them."""
    return (path.startswith(("/v2/", "/api/")) and path not in COHERE_PATHS) or path == "/v2"
