"""cluster/rayservice.yaml: equal to the shipped configuration, and valid as a strict API server would have it."""

import copy
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft4Validator

ROOT = Path(__file__).parents[3]
CRD = ROOT.parent / "shared" / "kuberay-crds" / "ray.io_rayservices.yaml"
MANIFEST_TEXT = (ROOT / "cluster" / "rayservice.yaml").read_text()
SERVE_CONFIG_TEXT = (ROOT / "serve_config.yaml").read_text()
MANIFEST: dict[str, Any] = yaml.safe_load(MANIFEST_TEXT)
WORKER_CONTAINER = ("spec", "rayClusterConfig", "workerGroupSpecs", 0, "template", "spec", "containers", 0)


def render(manifest: str, serve_config: str) -> str:
    spec = importlib.util.spec_from_file_location("render", ROOT / "cluster" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.render(manifest, serve_config))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """KubeRay's schema of RayService v1, with unknown fields refused as `kubectl --validate=strict` refuses them."""
    if not CRD.is_file():
        pytest.skip(f"KubeRay's CRDs are not at {CRD.parent}; the manifest is not checked against them")
    crd = yaml.load(CRD.read_bytes(), yaml.CSafeLoader)
    (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    root: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    root["properties"]["metadata"] = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 47}}}
    root["required"] = ["apiVersion", "kind", "metadata", "spec"]
    close(root)
    return root


def close(schema: dict[str, Any]) -> None:
    """Refuse unknown fields, and read Kubernetes' keywords as JSON Schema's."""
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema["additionalProperties"] = False
    children = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for child in children:
        if isinstance(child, dict):
            close(child)


def as_stored(value: Any, schema: dict[str, Any]) -> Any:
    """What the API server checks: nulls pruned where they are not allowed, defaults filled in."""
    if isinstance(value, list):
        return [as_stored(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    stored = {}
    for key, item in value.items():
        child = properties.get(key, others if isinstance(others, dict) else {})
        if item is not None or child.get("nullable"):
            stored[key] = as_stored(item, child)
    for key, child in properties.items():
        if "default" in child:
            stored.setdefault(key, copy.deepcopy(child["default"]))
    return stored


def mistakes(manifest: Any, schema: dict[str, Any]) -> list[str]:
    errors = Draft4Validator(schema).iter_errors(as_stored(manifest, schema))
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def changed(path: tuple[str | int, ...], value: Any) -> Any:
    """The manifest with one value set."""
    manifest = copy.deepcopy(MANIFEST)
    place: Any = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return manifest


def test_the_manifest_is_what_kuberay_takes(schema: dict[str, Any]) -> None:
    assert mistakes(MANIFEST, schema) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "serveConfigV3"), ""),
        (("spec", "serveConfigV2"), {"applications": []}),
        (("spec", "rayClusterConfig", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "minreplicas"), 1),
        (("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ((*WORKER_CONTAINER, "securityContext", "allowPrivilegeEscalations"), False),
        ((*WORKER_CONTAINER, "ports", 0, "containerPort"), "8000"),
        ((*WORKER_CONTAINER, "resources", "limits", "memory"), "6 Gigabytes"),
        ((*WORKER_CONTAINER, "name"), None),
        (("metadata", "name"), "x" * 48),
    ],
)
def test_a_typo_in_the_manifest_is_found(path: tuple[str | int, ...], value: Any, schema: dict[str, Any]) -> None:
    assert len(mistakes(changed(path, value), schema)) == 1


def test_nulls_are_pruned_and_defaults_filled_before_the_check(schema: dict[str, Any]) -> None:
    assert mistakes(changed(("spec", "suspend"), None), schema) == []
    stored = as_stored(MANIFEST, schema)
    assert stored["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["numOfHosts"] == 1


def test_the_manifest_is_rendered_from_the_shipped_configuration() -> None:
    assert render(MANIFEST_TEXT, SERVE_CONFIG_TEXT) == MANIFEST_TEXT, "run `make cluster`"


def test_the_carried_configuration_differs_in_the_address_only() -> None:
    carried, shipped = yaml.safe_load(MANIFEST["spec"]["serveConfigV2"]), yaml.safe_load(SERVE_CONFIG_TEXT)
    assert carried["http_options"].pop("host") == "0.0.0.0"
    assert shipped["http_options"].pop("host") == "127.0.0.1"
    assert carried == shipped


def test_a_configuration_without_the_line_to_replace_is_refused() -> None:
    with pytest.raises(ValueError, match="must have one line"):
        render(MANIFEST_TEXT, SERVE_CONFIG_TEXT.replace("127.0.0.1", "::1"))
    with pytest.raises(ValueError, match="must have one line"):
        render(MANIFEST_TEXT.replace("serveConfigV2", "serveConfig"), SERVE_CONFIG_TEXT)


def test_a_change_of_the_configuration_reaches_the_manifest() -> None:
    longer = SERVE_CONFIG_TEXT.replace("1024", "2048") + "\n# the end\n"
    carried = yaml.safe_load(render(MANIFEST_TEXT, longer))["spec"]
    assert carried["rayClusterConfig"] == MANIFEST["spec"]["rayClusterConfig"]
    assert yaml.safe_load(carried["serveConfigV2"])["applications"][1]["args"]["max_model_len"] == 2048
    assert render(render(MANIFEST_TEXT, longer), SERVE_CONFIG_TEXT) == MANIFEST_TEXT


def test_the_pods_run_the_locked_ray_as_a_plain_user() -> None:
    cluster = MANIFEST["spec"]["rayClusterConfig"]
    (locked,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster["rayVersion"] == locked
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    assert len({template["spec"]["containers"][0]["image"] for template in templates}) == 1
    for template in templates:
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_image_installs_from_the_lock_and_runs_as_the_pods_do() -> None:
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text()
    installs = re.findall(r"pip install .*", dockerfile)
    assert installs
    assert all("--constraint constraints.txt" in install for install in installs)
    assert re.findall(r"^USER (.+)$", dockerfile, re.MULTILINE) == ["1000:1000"]
