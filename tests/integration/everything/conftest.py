"""examples/everything.yaml on a real cluster with Serve's own proxy: each kind of model, HTTP and gRPC."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from examples.prepare_everything import prepare
from tests.integration.everything.calls import EXAMPLE
from tests.integration.serve_cluster import DEMO_MODEL, ServeCluster, free_port, model_application
from tests.unit.models.test_torch_model import save
from tests.user_modules import Sized

_CHOICE = {  # a detector's label chooses the generator
    "name": "assistant",
    "route_prefix": None,
    "import_path": "serve_app.app:build_graph",
    "args": {
        "name": "assistant",
        "steps": [
            {"name": "topic", "model": "tickets"},
            {
                "name": "answer",
                "choose": "topic",
                "cases": {"billing": "demo"},
                "default": "demo-short",
                "max_tokens": 12,
            },
        ],
        "output": ["topic", "answer"],
    },
}


LINEAR: dict[str, Any] = {  # a module of the tests
    "name": "linear",
    "route_prefix": None,
    "import_path": "serve_app.app:build_model",
    "args": {
        "name": "linear",
        "task": "predict",
        "inputs": {"input": {"dtype": "float32", "shape": ["batch", 4]}},
        "outputs": {"output": {"dtype": "float32", "shape": ["batch", 2]}},
        "arguments": {"in_features": 4, "out_features": 2},
        "architecture": "tests.user_modules:Sized",
        "device": {"cpu_threads": 1},
    },
}
SERVICES = [
    "serve_app.gateway.grpc.servicers.add_open_inference",
    "serve_app.gateway.grpc.servicers.add_rayshard",
    "serve_app.gateway.grpc.servicers.add_health",
]


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("everything")
    prepare(directory)
    return directory


@pytest.fixture(scope="package")
def port() -> int:
    return free_port()


@pytest.fixture(scope="package")
def cluster(models: Path, port: int) -> Iterator[ServeCluster]:
    applications = yaml.safe_load(EXAMPLE.read_text())["applications"]
    for application in applications:
        source = application["args"].get("source")
        if source is not None:
            made = models / Path(source).name
            application["args"]["source"] = str(made if made.exists() else (EXAMPLE.parent / source).resolve())
    gateway = next(one for one in applications if one["name"] == "gateway")
    gateway["args"] = {"queue_timeout_s": 120.0, "max_request_bytes": 64 * 2**20}
    second = model_application("demo-short", source=DEMO_MODEL, preprocessing=["normalize_unicode", "redact_pii"])
    torch.manual_seed(0)
    save(Sized(4, 2), models / "linear")
    grpc_options = {"port": port, "grpc_servicer_functions": SERVICES, "enable_reflection": True}
    linear = {**LINEAR, "args": {**LINEAR["args"], "source": str(models / "linear")}}
    cluster = ServeCluster([*applications, second, linear, _CHOICE], grpc_options, is_plain=True)
    cluster.wait_until(cluster.is_healthy, 120, "health")
    yield cluster
    cluster.stop()
