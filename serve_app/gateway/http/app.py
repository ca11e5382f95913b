"""The HTTP side of a Gateway: routes, bodies, time limits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from serve_app.errors import RayshardError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.open_inference import OpenInference
from serve_app.gateway.http.admin import PLAN_PATH, plan_endpoint
from serve_app.gateway.http.aliases import alias_routes
from serve_app.gateway.http.anthropic_errors import REQUEST_ID
from serve_app.gateway.http.anthropic_routes import anthropic_routes
from serve_app.gateway.http.batch_routes import batch_routes, batch_service
from serve_app.gateway.http.browser_guard import BrowserGuardMiddleware
from serve_app.gateway.http.cohere_routes import cohere_routes
from serve_app.gateway.http.compatible_routes import compatible_routes
from serve_app.gateway.http.console_routes import console_routes
from serve_app.gateway.http.console_state import STATE_PATH, console_state_endpoint
from serve_app.gateway.http.docs_routes import docs_routes
from serve_app.gateway.http.errors import on_http_exception, on_rayshard_error
from serve_app.gateway.http.health import health_endpoint
from serve_app.gateway.http.inference_routes import inference_endpoints
from serve_app.gateway.http.metrics import METRICS_PATH, RequestCounter, counted_routes, metrics_endpoint
from serve_app.gateway.http.middleware import (
    OPEN_PATHS,
    FaultMiddleware,
    HeaderLimitMiddleware,
    IntakeMiddleware,
    KeyMiddleware,
)
from serve_app.gateway.http.ollama_routes import ollama_routes
from serve_app.gateway.http.open_inference_routes import JSON_LENGTH, open_inference_routes
from serve_app.gateway.http.openai_routes import OpenAIEndpoints
from serve_app.gateway.http.refused_routes import refused_routes
from serve_app.gateway.http.responses_routes import responses_routes
from serve_app.gateway.http.shell import RequestShell


def build_http_app(plane: DataPlane) -> Starlette:
    """The Gateway's ASGI application; it closes the plane in the end."""
    endpoints = OpenAIEndpoints(plane)
    shell = RequestShell(plane.config)
    config = plane.config
    console = [Route(STATE_PATH, console_state_endpoint(plane)), *console_routes()]
    open_paths = OPEN_PATHS | {route.path for route in console}  # the console's state asks for a key itself
    free_paths = open_paths | {METRICS_PATH}
    keyless_paths = free_paths if config.open_metrics else open_paths
    keys = [] if plane.keys is None else [Middleware(KeyMiddleware, plane.keys, keyless_paths)]
    guard = Middleware(BrowserGuardMiddleware, config.allowed_hosts, config.cors_allowed_origins)
    inference = inference_endpoints(plane, shell, endpoints)
    routes = [
        Route("/health", health_endpoint(plane)),
        Route(METRICS_PATH, metrics_endpoint(plane)),
        Route(PLAN_PATH, plan_endpoint(plane, shell)),
        *compatible_routes(plane, shell),
        *anthropic_routes(plane, shell),
        Route("/v1/models", endpoints.list_models),
        Route("/v1/models/{name:path}", endpoints.get_model),
        Route("/v1/completions", endpoints.complete, methods=["POST"]),
        Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        Route("/v1/chat/completions/batch", endpoints.chat_batch, methods=["POST"]),
        Route("/v1/tokenize", endpoints.tokenize, methods=["POST"]),
        Route("/v1/detokenize", endpoints.detokenize, methods=["POST"]),
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in inference.items()),
        *responses_routes(plane, shell),
        *cohere_routes(plane, shell),
        *ollama_routes(plane, shell),
        *refused_routes(),
        *open_inference_routes(OpenInference(plane), shell),
        *docs_routes(),
        *console,
    ]

    batches = batch_service(plane, routes)
    routes += batch_routes(batches, shell)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        if batches is not None:
            batches.start()
        try:
            yield
        finally:
            if batches is not None:
                await batches.close()
            plane.close()

    app = Starlette(
        routes=counted_routes([*alias_routes(routes), *routes]),
        exception_handlers={
            RayshardError: on_rayshard_error,
            HTTPException: on_http_exception,
        },
        middleware=[
            Middleware(FaultMiddleware),
            Middleware(RequestCounter, plane.metrics, plane.tracing, free_paths),
            *_cors(plane.config.cors_allowed_origins),
            Middleware(HeaderLimitMiddleware),
            guard,
            Middleware(IntakeMiddleware, plane.intake, free_paths),
            *keys,
        ],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _cors(origins: list[str]) -> list[Middleware]:
    """Lets pages of these origins call, and answers what browsers ask beforehand, which comes without a key."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", REQUEST_ID, "retry-after", JSON_LENGTH],
        )
    ]
