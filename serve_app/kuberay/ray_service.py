"""The RayService: KubeRay's object for a Ray cluster that serves (API ray.io/v1, KubeRay 1.7)."""

import json
from collections.abc import Sequence

import yaml

from serve_app.kuberay.options import KubeRayOptions
from serve_app.kuberay.pods import (
    Part,
    Ports,
    container_security,
    head_template,
    labels,
    worker_template,
    writable_mounts,
)
from serve_app.kuberay.worker_groups import OBJECT_STORE_BYTES, WorkerGroup

RAY_VERSION = "2.60.0"  # that of constraints.txt, which a test compares
_IDLE_S = 300  # an empty pod stays for so long: a model takes minutes to load


def ray_service(options: KubeRayOptions, content: Part, ports: Ports, groups: Sequence[WorkerGroup]) -> Part:
    """The RayService that serves `content`, whose settings are those of pods already."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata(options, options.name),
        "spec": {
            "excludeHeadPodFromServeSvc": True,  # the head runs no model
            "upgradeStrategy": {"type": "NewCluster"},  # changed pods come up beside the old, which go afterwards
            "rayClusterDeletionDelaySeconds": max(60, options.drain_s),
            "serveConfigV2": yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True),
            "rayClusterConfig": _cluster(options, ports, groups),
        },
    }


def metadata(options: KubeRayOptions, name: str) -> Part:
    """Name, namespace and labels of one of the objects."""
    namespace = {} if options.namespace is None else {"namespace": options.namespace}
    return {"name": name, **namespace, "labels": labels(options)}


def _cluster(options: KubeRayOptions, ports: Ports, groups: Sequence[WorkerGroup]) -> Part:
    is_scaled = any(group.is_scaled for group in groups)
    token = {} if options.token_secret is None else {"secretName": options.token_secret}
    cluster: Part = {"rayVersion": RAY_VERSION, "authOptions": {"mode": "token", **token}}
    if options.has_ray_tls:
        cluster["tlsOptions"] = {"enabled": True}
    if options.redis is not None:
        cluster["gcsFaultToleranceOptions"] = _redis(options)
    if is_scaled:
        cluster["enableInTreeAutoscaling"] = True
        cluster["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": _IDLE_S,
            "securityContext": container_security(),
            "volumeMounts": writable_mounts(),
        }
    cluster["headGroupSpec"] = {
        "rayStartParams": {"num-cpus": "0", "object-store-memory": str(OBJECT_STORE_BYTES)},
        "template": head_template(options, ports, is_scaled=is_scaled),
    }
    has_gpus = any(group.num_gpus for group in groups)
    cluster["workerGroupSpecs"] = [
        _group(options, ports, group, options.node_selector if group.num_gpus or not has_gpus else {})
        for group in groups
    ]
    return cluster


def _group(options: KubeRayOptions, ports: Ports, group: WorkerGroup, selector: dict[str, str]) -> Part:
    parameters = {"num-cpus": str(group.num_ray_cpus), "object-store-memory": str(OBJECT_STORE_BYTES)}
    if group.accelerator_type is not None:  # Ray finds it by itself; the autoscaler of a group without pods does not
        resources = json.dumps({f"accelerator_type:{group.accelerator_type}": 1})
        parameters["resources"] = f"'{resources}'"  # read by a shell, by the operator, and by the autoscaler
    return {
        "groupName": group.name,
        "replicas": group.pods.first,
        "minReplicas": group.pods.least,
        "maxReplicas": group.pods.most,
        "rayStartParams": parameters,
        "template": worker_template(options, ports, group, selector),
    }


def _redis(options: KubeRayOptions) -> Part:
    found: Part = {"redisAddress": options.redis}
    if options.redis_secret is not None:
        reference = {"name": options.redis_secret, "key": "password"}
        found["redisPassword"] = {"valueFrom": {"secretKeyRef": reference}}
    return found
