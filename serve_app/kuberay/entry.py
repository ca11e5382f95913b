"""The way in from outside the cluster, where TLS ends: an Ingress, or a Gateway with its routes."""

from serve_app.kuberay.options import Entry, KubeRayOptions
from serve_app.kuberay.pods import Part, Ports
from serve_app.kuberay.ray_service import metadata

_HOUR = "3600"  # streams are long


def entry_objects(options: KubeRayOptions, ports: Ports) -> list[Part]:
    """The objects of the entry that is asked for."""
    entry = options.entry
    if entry is None:
        return []
    if entry.kind == "gateway":
        return _gateway(options, entry, ports)
    objects = [_ingress(options, entry, options.name, entry.host, "serve", {})]
    if ports.grpc is not None:  # nginx speaks one protocol to a host's Service, so gRPC has a host of its own
        grpc = {"nginx.ingress.kubernetes.io/backend-protocol": "GRPC"}
        name = f"{options.name}-grpc"
        objects.append(_ingress(options, entry, name, f"grpc.{entry.host}", "serve-grpc", grpc))
    return objects


def _ingress(
    options: KubeRayOptions, entry: Entry, name: str, host: str, port: str, annotations: dict[str, str]
) -> Part:
    timeouts = {f"nginx.ingress.kubernetes.io/proxy-{kind}-timeout": _HOUR for kind in ("read", "send")}
    streams = {"nginx.ingress.kubernetes.io/proxy-buffering": "off", "nginx.ingress.kubernetes.io/proxy-body-size": "0"}
    backend = {"service": {"name": _service(options), "port": {"name": port}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {**metadata(options, name), "annotations": {**timeouts, **streams, **annotations}},
        "spec": {
            "ingressClassName": entry.class_name,
            "tls": [{"hosts": [host], "secretName": entry.tls_secret}],
            "rules": [{"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}],
        },
    }


def _gateway(options: KubeRayOptions, entry: Entry, ports: Ports) -> list[Part]:
    """Gateway API v1; gRPC's routes are the services', so both protocols share the host."""
    listener = {
        "name": "https",
        "hostname": entry.host,
        "port": 443,
        "protocol": "HTTPS",
        "tls": {"mode": "Terminate", "certificateRefs": [{"name": entry.tls_secret}]},
    }
    gateway: Part = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": metadata(options, options.name),
        "spec": {"gatewayClassName": entry.class_name, "listeners": [listener]},
    }
    routes = [_route(options, entry, "HTTPRoute", options.name, ports.http, {})]
    if ports.grpc is not None:
        services = ("rayshard.v1.Rayshard", "inference.GRPCInferenceService", "grpc.health.v1.Health")
        matches = [{"method": {"type": "Exact", "service": service}} for service in services]
        routes.append(_route(options, entry, "GRPCRoute", f"{options.name}-grpc", ports.grpc, {"matches": matches}))
    return [gateway, *routes]


def _route(options: KubeRayOptions, entry: Entry, kind: str, name: str, port: int, rule: Part) -> Part:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": kind,
        "metadata": metadata(options, name),
        "spec": {
            "parentRefs": [{"name": options.name, "sectionName": "https"}],
            "hostnames": [entry.host],
            "rules": [{**rule, "backendRefs": [{"name": _service(options), "port": port}]}],
        },
    }


def _service(options: KubeRayOptions) -> str:
    return f"{options.name}-serve-svc"  # KubeRay makes it
