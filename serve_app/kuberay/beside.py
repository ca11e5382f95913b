"""What stands beside the RayService: who may reach its pods, how many may go at once, who reads their metrics."""

from collections.abc import Sequence

from serve_app.kuberay.options import KubeRayOptions
from serve_app.kuberay.pods import METRICS_PORT, Part, Ports
from serve_app.kuberay.ray_service import metadata
from serve_app.kuberay.worker_groups import WorkerGroup

_INSTANCE = "app.kubernetes.io/instance"
_OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}  # as its Helm chart labels it
_DASHBOARD_PORT = 8265
_OUTSIDE = {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}  # not the cloud's own, which hands out credentials


def disruption_budgets(options: KubeRayOptions, groups: Sequence[WorkerGroup]) -> list[Part]:
    """One budget for the head and one for each group: a drained node takes one answering pod at a time.

    A number of pods that stay, as Kubernetes takes nothing else of pods whose owner it does not know.
    """
    head = _budget(options, "head", {"ray.io/node-type": "head"}, 1)
    workers = [
        _budget(options, group.name, {"ray.io/group": group.name}, max(1, group.num_answering - 1))
        for group in groups
        if group.pods.least
    ]
    return [head, *workers]


def network_policy(options: KubeRayOptions, ports: Ports, *, needs_internet: bool, is_scaled: bool) -> Part:
    """Serve's ports are open; Ray's to the service's own pods, to KubeRay the one that it asks."""
    own: Part = {"podSelector": {"matchLabels": {_INSTANCE: options.name}}}
    served = [port for port in (ports.http, ports.grpc) if port is not None]
    operator = [{"namespaceSelector": {}, "podSelector": {"matchLabels": _OPERATOR}}]
    ingress: list[Part] = [
        {"from": [own]},
        {"ports": _tcp(*served)},
        {"from": operator, "ports": _tcp(_DASHBOARD_PORT)},
    ]
    if options.has_monitoring:
        prometheus = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}}
        ingress.append({"from": [prometheus], "ports": _tcp(METRICS_PORT)})
    dns = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    egress: list[Part] = [{"to": [own]}, {"ports": dns}]
    if options.redis is not None:
        egress.append({"ports": _tcp(options.redis_port)})
    if is_scaled:  # the API server's address is the cluster's own affair
        egress.append({"ports": _tcp(443, 6443)})
    elif needs_internet:
        egress.append({"to": [{"ipBlock": _OUTSIDE}], "ports": _tcp(443)})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(options, options.name),
        "spec": {
            "podSelector": {"matchLabels": {_INSTANCE: options.name}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def pod_monitor(options: KubeRayOptions) -> Part:
    """What Prometheus's operator is told: Ray's exporter of each pod, under rayshard's own names."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(options, options.name),
        "spec": {
            "selector": {"matchLabels": {_INSTANCE: options.name}},
            "podMetricsEndpoints": [
                {
                    "port": "metrics",
                    "interval": "15s",
                    "metricRelabelings": [
                        {
                            "sourceLabels": ["__name__"],
                            "regex": "ray_(rayshard_.*)",
                            "targetLabel": "__name__",
                            "replacement": "$1",
                        }
                    ],
                }
            ],
        },
    }


def _budget(options: KubeRayOptions, part: str, found: dict[str, str], least: int) -> Part:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(options, f"{options.name}-{part}"),
        "spec": {"minAvailable": least, "selector": {"matchLabels": {_INSTANCE: options.name, **found}}},
    }


def _tcp(*ports: int) -> list[Part]:
    return [{"protocol": "TCP", "port": port} for port in ports]
