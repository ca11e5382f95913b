"""`rayshard kuberay`: what serves a Serve file on Kubernetes. No Ray, no torch."""

import argparse
import sys

from serve_app.config.environment import read_environment
from serve_app.errors import ConfigError
from serve_app.kuberay.manifests import plan_manifests
from serve_app.kuberay.options import Entry, KubeRayOptions, parse_place, parse_selector


def run_kuberay(arguments: argparse.Namespace) -> int:
    """Print the manifests; the exit status. Raises ConfigError, and nothing is printed then."""
    manifests = plan_manifests(arguments.file, _options(arguments), read_environment())
    sys.stdout.write(manifests.text)
    return 0


def _options(arguments: argparse.Namespace) -> KubeRayOptions:
    return KubeRayOptions(
        name=arguments.name,
        namespace=arguments.namespace,
        image=arguments.image,
        places=tuple(parse_place(text) for text in arguments.in_pod),
        models_claim=arguments.models_claim,
        cache_claim=arguments.cache_claim,
        keys_secret=arguments.keys_secret,
        hub_secret=arguments.hub_secret,
        token_secret=arguments.token_secret,
        gpu_type=arguments.gpu_type,
        devices=arguments.devices,
        node_selector=parse_selector(arguments.node_selector),
        gpus_per_pod=arguments.gpus_per_pod,
        redis=arguments.redis,
        redis_secret=arguments.redis_secret,
        entry=_entry(arguments),
        has_monitoring=arguments.monitoring,
        has_ray_tls=arguments.ray_tls,
        drain_s=arguments.drain_s,
    )


def _entry(arguments: argparse.Namespace) -> Entry | None:
    class_name = arguments.ingress or arguments.gateway
    if class_name is None:
        given = [name for name in ("host", "tls_secret") if getattr(arguments, name) is not None]
        if given:
            option = f"--{given[0].replace('_', '-')}"
            raise ConfigError(f"{option} without a way in; give --ingress CLASS or --gateway CLASS")
        return None
    kind = "ingress" if arguments.ingress else "gateway"
    if arguments.host is None:
        raise ConfigError(f"--{kind} {class_name} without a host; give --host NAME")
    return Entry(kind, class_name, arguments.host, arguments.tls_secret or f"{arguments.name}-tls")
