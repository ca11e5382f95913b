"""What refuses a manifest: KubeRay's schema as a strict API server reads it, and the operator's own rules."""

import copy
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft4Validator

ROOT = Path(__file__).parents[1]
CRDS = Path(os.environ.get("KUBERAY_CRDS") or ROOT.parent / "shared" / "kuberay-crds")
_FILE = "ray.io_rayservices.yaml"
_WHERE_FROM = "github.com/ray-project/kuberay, tag v1.7.0, ray-operator/config/crd/bases"
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
_FOREIGN_VARIABLES = {"RAY_AUTH_MODE", "RAY_enable_autoscaler_v2", "RAY_REDIS_ADDRESS", "REDIS_PASSWORD"}


@cache
def schema() -> dict[str, Any]:
    """KubeRay's schema of RayService v1, with unknown fields refused as `kubectl --validate=strict` refuses them."""
    path = CRDS / _FILE
    if not path.is_file():
        pytest.skip(
            f"KubeRay's CRDs are not at {CRDS}; take them from {_WHERE_FROM} and set KUBERAY_CRDS to the folder"
        )
    crd = yaml.load(path.read_bytes(), yaml.CSafeLoader)
    (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    root: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    names = {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": texts, "annotations": texts}
    root["properties"]["metadata"] = {"type": "object", "properties": names, "required": ["name"]}
    root["properties"]["kind"] = {"enum": ["RayService"]}
    root["properties"]["apiVersion"] = {"enum": ["ray.io/v1"]}
    root["required"] = ["apiVersion", "kind", "metadata", "spec"]
    _close(root)
    return root


def schema_mistakes(manifest: Any) -> list[str]:
    """What the API server refuses."""
    errors = Draft4Validator(schema()).iter_errors(as_stored(manifest, schema()))
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def as_stored(value: Any, described: dict[str, Any]) -> Any:
    """What the API server checks: nulls pruned where they are not allowed, defaults filled in."""
    if isinstance(value, list):
        return [as_stored(item, described.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    properties, others = described.get("properties", {}), described.get("additionalProperties")
    stored = {}
    for key, item in value.items():
        child = properties.get(key, others if isinstance(others, dict) else {})
        if item is not None or child.get("nullable"):
            stored[key] = as_stored(item, child)
    for key, child in properties.items():
        if "default" in child:
            stored.setdefault(key, copy.deepcopy(child["default"]))
    return stored


def operator_mistakes(manifest: Any) -> list[str]:
    """What KubeRay 1.7's operator refuses of a manifest that the API server takes, with its default feature gates."""
    return list(_operator_mistakes(manifest))


def _operator_mistakes(manifest: Any) -> Iterator[str]:
    spec, name = manifest["spec"], manifest["metadata"]["name"]
    cluster = spec["rayClusterConfig"]
    if len(name) > 47 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"name {name}"
    strategy = spec.get("upgradeStrategy", {}).get("type")
    if strategy not in (None, "NewCluster", "NewClusterWithIncrementalUpgrade", "None"):
        yield f"upgradeStrategy {strategy}"
    if "networkPolicy" in cluster:
        yield "networkPolicy needs a feature gate"
    version = tuple(map(int, cluster.get("rayVersion", "0").split(".")))
    if cluster.get("authOptions", {}).get("mode") == "token" and version < (2, 52):
        yield f"token with rayVersion {cluster.get('rayVersion')}"
    head = cluster["headGroupSpec"]
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        yield "the head takes work"
    serve = [port["name"] for port in head["template"]["spec"]["containers"][0].get("ports", [])]
    if "serve" not in serve:
        yield "no port named serve: KubeRay makes no Service"
    is_scaled = cluster.get("enableInTreeAutoscaling", False)
    names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
    if len(set(names)) < len(names):
        yield "two groups of one name"
    for group in (head, *cluster["workerGroupSpecs"]):
        yield from _group_mistakes(group, is_scaled=is_scaled)
    yield from _config_mistakes(spec.get("serveConfigV2", ""))


def _group_mistakes(group: Any, *, is_scaled: bool) -> Iterator[str]:
    name = group.get("groupName", "head")
    parameters = group.get("rayStartParams", {})
    if "labels" in parameters:
        yield f"{name}: labels in rayStartParams"
    if {"num-cpus", "num-gpus", "memory", "resources"} & set(parameters) and group.get("resources"):
        yield f"{name}: resources given twice"
    if group.get("minReplicas", 0) > group.get("maxReplicas", 0):
        yield f"{name}: minReplicas above maxReplicas"
    if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0) and name != "head":
        yield f"{name}: replicas outside of its bounds"
    pod = group["template"]["spec"]
    if is_scaled and pod.get("restartPolicy", "Never") != "Never":
        yield f"{name}: restartPolicy beside autoscaler v2"
    container = pod["containers"][0]
    found = {variable["name"] for variable in container.get("env", [])} & _FOREIGN_VARIABLES
    if found:
        yield f"{name}: KubeRay sets {found}"
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    missing = {mount["name"] for mount in container.get("volumeMounts", [])} - volumes
    if missing:
        yield f"{name}: no volumes {missing}"
    amounts = container["resources"]
    for resource in amounts["limits"] | amounts["requests"]:
        if resource not in ("cpu", "memory", "nvidia.com/gpu", "ephemeral-storage"):
            yield f"{name}: no node has {resource}"
        if amounts["requests"].get(resource) != amounts["limits"].get(resource):
            yield f"{name}: requests are not limits"
    for amount in amounts["limits"].values():
        if not _QUANTITY.fullmatch(str(amount)):
            yield f"{name}: {amount} is not a quantity"


def _config_mistakes(text: str) -> Iterator[str]:
    config = yaml.safe_load(text)
    if not isinstance(config, dict) or not config.get("applications"):
        yield "serveConfigV2 has no applications"


def _close(described: dict[str, Any]) -> None:
    """Refuse unknown fields, and read Kubernetes' keywords as JSON Schema's."""
    if described.get("x-kubernetes-int-or-string"):
        described.pop("type", None)
    if "properties" in described and not described.get("x-kubernetes-preserve-unknown-fields"):
        described["additionalProperties"] = False
    children = [*described.get("properties", {}).values(), described.get("items")]
    for child in [*children, described.get("additionalProperties")]:
        if isinstance(child, dict):
            _close(child)
