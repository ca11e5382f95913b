"""/openapi.json says what every route takes and gives; schemathesis holds it against a real socket."""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from starlette.applications import Starlette
from starlette.routing import Route

from serve_app.config.batches import BatchesConfig
from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.aliases import ALIASES
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.http.console_routes import console_routes
from serve_app.gateway.http.openapi import openapi_document
from serve_app.gateway.http.operations import operations
from serve_app.gateway.time_limits import TIMEOUT_KEY
from serve_app.types.tensors import TensorSpec
from tests.fakes import ScriptedBackend, save_model_dir, serving
from tests.unit.gateway.http.test_inference_routes import LABELS, answer, description

DOCUMENT = json.loads(openapi_document())
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
CHECKS = [
    schemathesis.checks.CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
]
MODELS = {
    "/v1/embeddings": "vectors",
    "/v1/score": "vectors",
    "/v1/rerank": "vectors",
    "/v1/classify": "colours",
    "/predict": "colours",
    "/embed": "vectors",
    "/v2/embed": "vectors",
    "/api/embed": "vectors",
    "/pooling": "vectors",
}
NAMES = ("tiny", "vectors", "colours", "module")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starlette]:
    directory = save_model_dir(tmp_path_factory.mktemp("models"))
    vector = {"embedding": TensorSpec("float32", ("batch", 3))}
    logits = {"logits": TensorSpec("float32", ("batch", 3))}
    tensors, outputs = (
        {"x": TensorSpec("float32", ("batch", 2))},
        {"y": TensorSpec("float32", ("batch", 2)), "n": TensorSpec("bool", ("batch", 2))},
    )
    backend = ScriptedBackend(directory, infer_script=answer, max_steps_in_chunk=64)
    backend.extra_models = [
        description(directory, "vectors", "embed", vector, embedding_size=3),
        description(directory, "colours", "classify", logits, labels=LABELS),
        description(directory, "module", "predict", outputs, inputs=tensors, has_tokenizer=False),
    ]
    batches = BatchesConfig(directory=str(tmp_path_factory.mktemp("batches")))
    plane = DataPlane(backend, GatewayConfig(batches=batches))
    yield build_http_app(plane)
    plane.close()  # a process may run none of the tests that serve it


@pytest.fixture(scope="module")
def url(app: Starlette) -> Iterator[str]:
    """A server in a thread: schemathesis calls and waits."""
    found: list[str] = []
    is_started, is_over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with serving(app) as base_url:
            found.append(base_url)
            is_started.set()
            await asyncio.to_thread(is_over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert is_started.wait(30)
    yield found[0]
    is_over.set()
    thread.join(30)


def test_every_route_is_described_and_nothing_else(app: Starlette) -> None:
    routes = set()
    for route in app.routes:
        assert isinstance(route, Route)
        path = re.sub(r"{(\w+):path}", r"{\1}", route.path)
        routes |= {(method, path) for method in route.methods or () if method != "HEAD"}
    pages = {("GET", route.path) for route in console_routes()}
    assert {(operation.method, operation.path) for operation in operations()} == routes - pages
    assert pages < routes


def test_no_key_is_asked_for_where_the_document_says_so() -> None:
    described = DOCUMENT["paths"]
    assert described["/health"]["get"]["security"] == []
    assert {"key": []} in described["/v1/completions"]["post"]["security"]


def test_the_document_says_what_a_completion_takes() -> None:
    body = DOCUMENT["components"]["schemas"]["CompletionBody"]
    assert body["additionalProperties"] is False
    assert body["required"] == ["prompt"]
    assert {"maximum": 2, "minimum": 0, "type": "number"} in body["properties"]["temperature"]["anyOf"]


def aim(case: Any) -> None:
    """Name models that are served in three of four cases: otherwise nearly all answers were 404.

    No time limit stays that is over before anything can answer: 504 is right then, and tested elsewhere.
    """
    if str((case.headers or {}).get(TIMEOUT_KEY, "")).isdecimal():
        case.headers[TIMEOUT_KEY] = "60000"
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str) and len(case.body["model"]) % 4:
        case.body["model"] = MODELS.get(ALIASES.get(case.path, case.path), "tiny")
    name = str((case.path_parameters or {}).get("name", ""))
    if len(name) % 4:
        case.path_parameters["name"] = NAMES[sum(name.encode()) % len(NAMES)]


def make_test(path: str, method: str) -> Callable[..., None]:
    """That no call of an operation is answered otherwise than described."""

    @SCHEMA.include(path=path, method=method).parametrize()
    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def check(case: Any, url: str) -> None:
        aim(case)
        case.call_and_validate(base_url=url, checks=CHECKS)

    checked: Callable[..., None] = check
    return checked


for _path, _methods in DOCUMENT["paths"].items():
    for _method in _methods if _path not in ALIASES else ():
        # A function for each: all that schemathesis makes of one function has one id in pytest 9.2, and xdist runs an
        # id once.
        _slug = re.sub(r"\W+", "_", _path).strip("_")
        globals()[f"test_calls_of_{_method}_{_slug}_are_answered_as_described"] = make_test(_path, _method.upper())


def test_the_page_shows_every_path_and_loads_nothing(url: str) -> None:
    response = httpx.get(f"{url}/docs")
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    for path in DOCUMENT["paths"]:
        assert f"<code>{path}</code>" in response.text, path
    assert "<script" not in response.text
    assert "http://" not in response.text
