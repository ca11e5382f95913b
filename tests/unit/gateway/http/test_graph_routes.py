"""Graphs over HTTP: the real routes and the real steps, on models that answer by rule."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.backend.text_models import TextModels
from serve_app.config.gateway import GatewayConfig
from serve_app.config.graph import GraphConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.graphs.check import port_of_description, result_kind
from serve_app.graphs.model_steps import ModelSteps
from serve_app.graphs.runner import GraphRunner
from serve_app.preprocessing.text_pool import TextPool
from serve_app.types.graphs import GraphRequest, GraphResult
from serve_app.types.models import ModelDescription
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving
from tests.fakes_graph import LABELS, FakeModels, described

CLEAN = {"name": "clean", "chain": ["collapse_whitespace", "lowercase"]}
SENTENCES = {"name": "sentences", "chain": ["split_sentences"], "input": "clean"}
GRAPHS = [
    {"name": "language", "steps": [CLEAN, {"name": "l", "model": "lang", "input": "clean"}], "output": "l"},
    {"name": "vector", "steps": [CLEAN, {"name": "v", "model": "minilm", "input": "clean"}], "output": "v"},
    {
        "name": "everything",
        "steps": [
            CLEAN,
            SENTENCES,
            {"name": "l", "model": "lang", "input": "clean"},
            {"name": "v", "model": "minilm", "input": "sentences"},
        ],
        "output": ["l", "sentences", "v"],
    },
    {"name": "joint", "input": "texts", "steps": [{"name": "v", "model": "minilm"}], "output": "v"},
]


@dataclass
class Served:
    """A client of a Gateway with graphs."""

    client: httpx.AsyncClient
    models: FakeModels

    async def post(self, path: str, **body: Any) -> httpx.Response:
        """POST a JSON body."""
        return await self.client.post(path, json=body)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    directory = save_model_dir(tmp_path)
    models = FakeModels([described(directory, "minilm", "embed"), described(directory, "lang", "classify")])
    pool = TextPool(1)
    ports = {model.name: port_of_description(model) for model in models.described}
    runners = {}
    backend = ScriptedBackend(directory)
    for values in GRAPHS:
        config = GraphConfig.model_validate(values)
        runners[config.name] = GraphRunner(config, ModelSteps(TextModels(models, pool), pool), pool)
        gives = result_kind(config, ports)
        backend.extra_models.append(
            ModelDescription(config.name, "graph", "", 0, 0, 0, [], 1, has_tokenizer=False, graph_gives=gives)
        )

    async def run(request: GraphRequest) -> GraphResult:
        return await runners[request.graph].run(request)

    backend.graph = run
    async with (
        serving(build_http_app(DataPlane(backend, GatewayConfig()))) as url,
        httpx.AsyncClient(verify=NO_TLS, base_url=url) as client,
    ):
        yield Served(client, models)
    pool.close()


async def test_a_graph_that_gives_labels_is_called_like_a_classifier(served: Served) -> None:
    one = await served.post("/predict", model="language", text="  Some   TEXT ")
    assert one.status_code == 200, one.text
    assert one.json()["label"] in LABELS
    assert one.json()["probabilities"].keys() == set(LABELS)
    two = (await served.post("/predict", model="language", text=["some text", "ab"])).json()
    assert two[0] == one.json()
    classified = (await served.post("/v1/classify", model="language", input="some text")).json()
    assert classified["data"][0]["label"] == one.json()["label"]
    assert classified["usage"]["prompt_tokens"] > 0


async def test_a_graph_that_gives_vectors_is_called_like_an_embedder(served: Served) -> None:
    answer = (await served.post("/v1/embeddings", model="vector", input=["ab", "a b c"])).json()
    lengths = [entry["embedding"][0] for entry in answer["data"]]
    assert sum(lengths) == answer["usage"]["prompt_tokens"]
    joint = (await served.post("/v1/embeddings", model="joint", input=["ab", "a b c"])).json()
    assert [entry["embedding"][0] for entry in joint["data"]] == lengths
    cut = (await served.post("/v1/embeddings", model="vector", input="ab", dimensions=1)).json()
    assert len(cut["data"][0]["embedding"]) == 1


async def test_several_results_have_names_and_lists_stay_lists(served: Served) -> None:
    answer = (await served.post("/predict", model="everything", text="One. Two  THREE.")).json()["results"]
    assert [entry["text"] for entry in answer["sentences"]] == ["one.", "two three."]
    assert len(answer["v"]) == 2
    assert answer["l"]["label"] in LABELS


@pytest.mark.parametrize(
    ("path", "body", "field", "says"),
    [
        ("/predict", {"inputs": {"x": [1]}}, "text", "takes text; leave out inputs"),
        ("/predict", {"text": []}, "text", "0 entries"),
        ("/predict", {"text": "a", "truncate": True}, "truncate", "not for graphs"),
        ("/v1/embeddings", {"input": [1, 2]}, "input", "token ids"),
        ("/v1/embeddings", {"input": "a", "model": "language"}, "model", "gives label.*use /predict"),
        ("/v1/classify", {"input": "a", "model": "everything"}, "model", "gives results.*use /predict"),
        ("/v1/embeddings", {"input": "a", "model": "vector", "dimensions": 99}, "dimensions", "more than"),
        ("/v1/score", {"text_1": "a", "text_2": "b"}, "model", "serves graph.*use /predict"),
        ("/v1/completions", {"prompt": "a"}, "model", "serves graph.*use /predict"),
    ],
)
async def test_what_a_graph_cannot_do_is_refused_and_the_next_request_works(
    served: Served, path: str, body: dict[str, Any], field: str, says: str
) -> None:
    response = await served.post(path, **{"model": "vector", **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field), error
    assert says.replace(".*", "") in error["message"] or all(part in error["message"] for part in says.split(".*"))
    assert (await served.post("/predict", model="vector", text="ab")).status_code == 200


async def test_a_graph_is_listed_as_a_model(served: Served) -> None:
    names = [model["id"] for model in (await served.client.get("/v1/models")).json()["data"]]
    assert {"language", "everything"} <= set(names)
