"""The options of `rayshard kuberay`."""

import argparse
from pathlib import Path

from serve_app.kuberay.options import IMAGE


def add_kuberay_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command `kuberay`."""
    parser = commands.add_parser(
        "kuberay", help="print a RayService for KubeRay, and what it needs beside it, from a Serve file"
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a Serve file")
    parser.add_argument("--name", default="rayshard", help="of the RayService (default: %(default)s)")
    parser.add_argument("--namespace", help="(default: that of kubectl)")
    parser.add_argument("--image", default=IMAGE, help="of every pod, built from cluster/Dockerfile")
    _add_files(parser)
    _add_nodes(parser)
    _add_entry(parser)
    redis = parser.add_argument_group("state that outlives the head")
    redis.add_argument("--redis", metavar="HOST:PORT", help="a Redis for it")
    redis.add_argument("--redis-secret", metavar="NAME", help="a Secret with its `password`")
    parser.add_argument("--monitoring", action="store_true", help="a PodMonitor for Prometheus's operator")
    parser.add_argument("--token-secret", metavar="NAME", help="a Secret with `auth_token`, Ray's (default: KubeRay's)")
    parser.add_argument(
        "--ray-tls", action="store_true", help="TLS between Ray's processes: cert-manager and KubeRay's RayClusterMTLS"
    )
    drain = "how long the requests of a pod that ends may go on (default: %(default)s)"
    parser.add_argument("--drain-s", type=_count, default=120, metavar="S", help=drain)


def _add_files(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("what pods have")
    where = "where pods have a folder of this machine: below /app (the image's) or /models; as often as needed"
    files.add_argument("--in-pod", action="append", default=[], metavar="HERE=IN_POD", help=where)
    files.add_argument("--models-claim", metavar="NAME", help="a PersistentVolumeClaim with models, at /models")
    files.add_argument("--cache-claim", metavar="NAME", help="one for what is downloaded (default: each pod its own)")
    files.add_argument("--keys-secret", metavar="NAME", help="a Secret whose `keys.txt` is the file of API keys")
    files.add_argument("--hub-secret", metavar="NAME", help="a Secret with the `token` of the hub")


def _add_nodes(parser: argparse.ArgumentParser) -> None:
    nodes = parser.add_argument_group("nodes with GPUs")
    nodes.add_argument(
        "--gpu-type", metavar="TYPE", help="GPUs of models without device.accelerator_type, such as H100"
    )
    more = "a YAML of further devices, in the form of serve_app/planning/devices.yaml"
    nodes.add_argument("--devices", type=Path, metavar="FILE", help=more)
    per_pod = "GPUs of each pod (default: those of a copy, where a node has them)"
    nodes.add_argument("--gpus-per-pod", type=_count, metavar="N", help=per_pod)
    label = "a label of the nodes for pods with GPUs, or for all workers where none has; as often as needed"
    nodes.add_argument("--node-selector", action="append", default=[], metavar="KEY=VALUE", help=label)


def _add_entry(parser: argparse.ArgumentParser) -> None:
    entry = parser.add_argument_group("a way in from outside the cluster, with TLS")
    kind = entry.add_mutually_exclusive_group()
    kind.add_argument("--ingress", metavar="CLASS", help="an Ingress of this class")
    kind.add_argument("--gateway", metavar="CLASS", help="a Gateway of this class, and its routes")
    entry.add_argument("--host", metavar="NAME", help="that clients ask for")
    entry.add_argument("--tls-secret", metavar="NAME", help="with its certificate (default: the service's name, -tls)")


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)
