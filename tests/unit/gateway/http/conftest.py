"""A model's files, a backend that answers by rule, and a Gateway over one model of each task."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.types.tensors import Item, TensorSpec
from tests.fakes import ScriptedBackend, save_model_dir
from tests.unit.gateway.http.test_inference_routes import LABELS, answer, description, score


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture
def backend(model_dir: Path) -> ScriptedBackend:
    return ScriptedBackend(model_dir)


def number(item: Item) -> Item:
    """The judge's logit follows the length, the others' numbers follow the tokens."""
    return {**answer(item), "score": score(item)["logits"]} if "x" not in item else answer(item)


@pytest_asyncio.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    directory = save_model_dir(tmp_path)
    spec = TensorSpec("float32", ("batch", 3))
    backend = ScriptedBackend(directory, infer_script=number)
    backend.extra_models = [
        description(directory, "vectors", "embed", {"embedding": spec}, embedding_size=3),
        description(directory, "colours", "classify", {"logits": spec}, labels=LABELS),
        description(directory, "judge", "score", {"score": TensorSpec("float32", ("batch", 1))}),
    ]
    app = build_http_app(DataPlane(backend, GatewayConfig()))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client,
    ):
        yield client
