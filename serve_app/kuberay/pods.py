"""The pods of head and workers: what they may do, what they see, how they start and end."""

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.kuberay.options import MODELS_FOLDER, KubeRayOptions
from serve_app.kuberay.pod_config import KEYS_FOLDER
from serve_app.kuberay.worker_groups import OBJECT_STORE_BYTES, WorkerGroup
from serve_app.planning.haproxy_settings import HAPROXY_SETTINGS

MIB = 1024**2
AGENT_PORT = 52365  # Ray's own, of each node's agent
METRICS_PORT = 8080

_USER = 1000  # of cluster/Dockerfile
_END_S = 60  # beyond draining, for Serve and Ray to end
_HOME = "/home/rayshard"
_CACHE = "/cache"
_TOPOLOGY = "kubernetes.io/hostname"
_ENVIRONMENT = {
    "HOME": _HOME,
    "XDG_CACHE_HOME": _CACHE,
    "RAYSHARD_LOG_FORMAT": "json",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own is 15, the lowest share of a busy node
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # else one that hangs stays for minutes
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    **HAPROXY_SETTINGS,
}
_HEAD_CPU = "2"
_HEAD_MEMORY = 4096 * MIB
_SCRATCH = "8Gi"  # Ray's session and its logs, which it rotates

Part = dict[str, object]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where Serve listens."""

    http: int
    grpc: int | None


def container_security() -> Part:
    """What a container may do: nothing beside running."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
    }


def writable_mounts() -> list[Part]:
    """The places that a process may write to, beside /dev/shm."""
    return [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": _HOME}]


def labels(options: KubeRayOptions) -> dict[str, str]:
    """By which all of a service's pods are found, those of both clusters during an upgrade."""
    return {"app.kubernetes.io/instance": options.name, "app.kubernetes.io/part-of": "rayshard"}


def head_template(options: KubeRayOptions, ports: Ports, *, is_scaled: bool) -> Part:
    """The pod of the head, on which no replica runs."""
    container = {
        "name": "ray-head",
        "image": options.image,
        "ports": [
            {"name": "gcs-server", "containerPort": 6379},
            {"name": "dashboard", "containerPort": 8265},
            {"name": "client", "containerPort": 10001},
            *_serve_ports(ports),
        ],
        "env": _environment(options),
        "resources": _resources({"cpu": _HEAD_CPU, "memory": quantity(_HEAD_MEMORY)}),
        "securityContext": container_security(),
        "volumeMounts": _mounts(options),
    }
    shared = OBJECT_STORE_BYTES + 64 * MIB
    spec = {
        "automountServiceAccountToken": is_scaled,  # the autoscaler asks Kubernetes for pods
        "terminationGracePeriodSeconds": _END_S,
        "securityContext": _pod_security(),
        "containers": [container],
        "volumes": _volumes(options, shared),
    }
    return {"metadata": {"labels": labels(options)}, "spec": spec}


def worker_template(options: KubeRayOptions, ports: Ports, group: WorkerGroup, selector: Mapping[str, str]) -> Part:
    """The pod of a group of workers."""
    amounts = {"cpu": str(group.num_cores), "memory": quantity(group.memory_bytes)}
    if group.num_gpus:
        amounts["nvidia.com/gpu"] = str(group.num_gpus)
    container = {
        "name": "ray-worker",
        "image": options.image,
        "ports": _serve_ports(ports),
        "env": _environment(options),
        "resources": _resources(amounts),
        **_probes(ports),
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", _drain_command(options.drain_s)]}}},
        "securityContext": container_security(),
        "volumeMounts": _mounts(options),
    }
    spec: Part = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": options.drain_s + _END_S,
        "securityContext": _pod_security(),
    }
    if selector:
        spec["nodeSelector"] = dict(selector)
    if group.num_gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    spec["topologySpreadConstraints"] = [_spread(options, group)]
    spec["containers"] = [container]
    spec["volumes"] = _volumes(options, group.shared_bytes)
    return {"metadata": {"labels": labels(options)}, "spec": spec}


def quantity(num_bytes: int) -> str:
    """Bytes as Kubernetes writes them."""
    for unit, size in (("Gi", 1024**3), ("Mi", MIB)):
        if num_bytes % size == 0:
            return f"{num_bytes // size}{unit}"
    return str(num_bytes)


def _pod_security() -> Part:
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        "fsGroupChangePolicy": "OnRootMismatch",  # else each start would walk through a volume of models
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _serve_ports(ports: Ports) -> list[Part]:
    """KubeRay's Service has the ports whose names begin with `serve`."""
    grpc: list[Part] = [] if ports.grpc is None else [{"name": "serve-grpc", "containerPort": ports.grpc}]
    return [
        {"name": "serve", "containerPort": ports.http},
        *grpc,
        {"name": "metrics", "containerPort": METRICS_PORT},
    ]


def _environment(options: KubeRayOptions) -> list[Part]:
    variables: list[Part] = [{"name": name, "value": value} for name, value in _ENVIRONMENT.items()]
    if options.hub_secret is not None:
        reference = {"name": options.hub_secret, "key": "token"}
        variables.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    return variables


def _resources(amounts: Mapping[str, str]) -> Part:
    """Requests are limits: such pods are the last that a full node ends."""
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _probes(ports: Ports) -> Part:
    """Alive: Ray's agent and raylet. Ready: Serve's proxy answers, so that a pod of shards alone gets no requests."""
    node = {"path": "/api/healthz", "port": AGENT_PORT}
    return {
        "startupProbe": {"httpGet": node, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 60},
        "livenessProbe": {"httpGet": node, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 12},
        "readinessProbe": {
            "httpGet": {"path": "/-/healthz", "port": ports.http},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 2,
        },
    }


def _drain_command(drain_s: int) -> str:
    """Replicas move away where there is room, and requests end meanwhile: the pod is in no Service any more."""
    return (
        "timeout 30 ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the pod ends' "
        f"--deadline-remaining-seconds {drain_s} || true; sleep {drain_s}"
    )


def _spread(options: KubeRayOptions, group: WorkerGroup) -> Part:
    found = {"app.kubernetes.io/instance": options.name, "ray.io/group": group.name}
    return {
        "maxSkew": 1,
        "topologyKey": _TOPOLOGY,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": found},
    }


def _mounts(options: KubeRayOptions) -> list[Part]:
    mounts: list[Part] = [
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        *writable_mounts(),
        {"name": "cache", "mountPath": _CACHE},
    ]
    if options.models_claim is not None:
        mounts.append({"name": "models", "mountPath": str(MODELS_FOLDER), "readOnly": True})
    if options.keys_secret is not None:
        mounts.append({"name": "keys", "mountPath": KEYS_FOLDER, "readOnly": True})
    return mounts


def _volumes(options: KubeRayOptions, shared_bytes: int) -> list[Part]:
    cache: Part = {"emptyDir": {}}
    if options.cache_claim is not None:
        cache = {"persistentVolumeClaim": {"claimName": options.cache_claim}}
    volumes: list[Part] = [
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": quantity(shared_bytes)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": _SCRATCH}},
        {"name": "home", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "cache", **cache},
    ]
    if options.models_claim is not None:
        claim = {"claimName": options.models_claim, "readOnly": True}
        volumes.append({"name": "models", "persistentVolumeClaim": claim})
    if options.keys_secret is not None:
        volumes.append({"name": "keys", "secret": {"secretName": options.keys_secret, "defaultMode": 0o440}})
    return volumes
