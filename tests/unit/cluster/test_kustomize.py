"""cluster/: the shipped files are what the command prints, a component is one of its options, and overlays render."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.write_manifests import GPU_CONFIG, GPU_TYPE, ROOT, printed, written
from tests.kuberay_schema import operator_mistakes, schema_mistakes

OVERLAYS = ["kind", "production"]
COMPONENTS: dict[str, dict[str, Any]] = {  # the options of the command that a component stands for
    "redis": {"redis": "redis:6379", "redis_secret": "rayshard-redis"},
    "monitoring": {"has_monitoring": True},
    "model-cache": {"cache_claim": "rayshard-cache"},
    "auth": {"token_secret": "rayshard-token"},
}
Objects = dict[tuple[str, str], Any]


def render(folder: Path) -> Objects:
    """What kustomize makes of a folder, by kind and name."""
    if shutil.which("kustomize"):
        command = ["kustomize", "build"]
    elif shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    else:
        pytest.skip("neither kubectl nor kustomize is on the PATH; the overlays are not rendered")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return by_name(yaml.safe_load_all(done.stdout))


def by_name(objects: Any) -> Objects:
    return {(one["kind"], one["metadata"]["name"]): one for one in objects}


def with_components(tmp_path: Path, *components: str) -> Objects:
    """The base with these components."""
    shutil.copytree(ROOT / "cluster", tmp_path / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "cluster" / "overlays" / "tried"
    folder.mkdir()
    parts = {"resources": ["../../base"], "components": [f"../../components/{name}" for name in components]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(parts))
    return render(folder)


def test_the_shipped_files_are_what_the_command_prints() -> None:
    differing = [path for path, text in written().items() if (ROOT / path).read_text() != text]
    assert differing == [], "run python -m cluster.write_manifests"


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_is_an_option_of_the_command(name: str, tmp_path: Path) -> None:
    found = with_components(tmp_path, name)
    found.pop(("PersistentVolumeClaim", "rayshard-cache"), None)  # what the option names is made apart
    assert found == by_name(printed(Path("serve_config.yaml"), **COMPONENTS[name]).objects)


def test_the_gpu_component_is_the_command_on_its_file(tmp_path: Path) -> None:
    assert with_components(tmp_path, "gpu") == by_name(printed(GPU_CONFIG, gpu_type=GPU_TYPE).objects)


def test_components_go_together(tmp_path: Path) -> None:
    found = with_components(tmp_path, "gpu", *COMPONENTS)
    options = {key: value for given in COMPONENTS.values() for key, value in given.items()}
    found.pop(("PersistentVolumeClaim", "rayshard-cache"))
    assert found == by_name(printed(GPU_CONFIG, gpu_type=GPU_TYPE, **options).objects)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_taken_by_a_strict_server_and_the_operator(overlay: str) -> None:
    objects = render(ROOT / "cluster" / "overlays" / overlay)
    service = objects[("RayService", "rayshard")]
    assert schema_mistakes(service) == []
    assert operator_mistakes(service) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_takes_the_rest_of_an_overlay(overlay: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate, of the test extra, is missing")
    for (kind, _), one in render(ROOT / "cluster" / "overlays" / overlay).items():
        if kind not in ("RayService", "PodMonitor"):
            validate.validate(one, "1.35", strict=True)


def test_overlays_set_image_and_namespace_everywhere() -> None:
    kind = render(ROOT / "cluster" / "overlays" / "kind")[("RayService", "rayshard")]
    cluster = kind["spec"]["rayClusterConfig"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert {pod["template"]["spec"]["containers"][0]["image"] for pod in pods} == {"rayshard:dev"}
    production = render(ROOT / "cluster" / "overlays" / "production")
    assert {one["metadata"].get("namespace") for (kind, _), one in production.items() if kind != "Namespace"} == {
        "rayshard"
    }
    assert {kind for kind, _ in production} >= {"PodMonitor", "PersistentVolumeClaim", "NetworkPolicy", "RayService"}


def test_make_cluster_uses_the_configuration_that_it_is_given() -> None:
    command = ["make", "-n", "cluster", "CONFIG=mine.yaml", "KUBERAY_ARGS=--name chat"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(r"rayshard kuberay mine\.yaml --name chat > cluster/base/rayshard\.yaml\.new", done.stdout)
