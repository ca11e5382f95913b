"""The Serve file as pods run it: its parsed content with what differs there, and nothing else."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from serve_app.config.model import ModelConfig
from serve_app.kuberay.options import KubeRayOptions
from serve_app.planning.serve_file import ServeFile
from serve_app.planning.serve_options import GATEWAY_IMPORT_PATH
from serve_app.planning.setting_problems import Problem, shown

KEYS_FOLDER = "/etc/rayshard/keys"  # where the Secret of --keys-secret is mounted
KEYS_FILE = f"{KEYS_FOLDER}/keys.txt"
WRITABLE = ("/tmp/", "/cache/")  # all else of a pod is read-only

_ADDRESS = "0.0.0.0"  # every address of the pod: the Service in front of it comes from outside
_PORTS_IN_USE = {
    6379: "Ray's GCS",
    8080: "Ray's metrics",
    8265: "Ray's dashboard",
    8404: "HAProxy's statistics",
    9101: "HAProxy's metrics",
    10001: "Ray Client",
    52365: "Ray's agent",
}

Content = dict[str, object]


@dataclass(frozen=True, slots=True)
class PodModel:
    """What pods are told of one model."""

    config: ModelConfig  # with its split
    source: str  # that pods have
    num_threads: int  # that a shard computes with


def refuse_in_pods(content: Content, serve_file: ServeFile, options: KubeRayOptions) -> list[Problem]:
    """What of a Serve file without mistakes no pod can have."""
    problems = list(_server_problems(content, serve_file, options))
    for where, settings in _with_settings(content):
        problems += _log_problems(where, settings.get("logging_config"))
        problems += _environment_problems(where, settings.get("runtime_env"))
    return problems


def pod_content(content: Content, models: Mapping[str, list[PodModel]], options: KubeRayOptions) -> Content:
    """The content for pods; models: by application, those that share one in their order."""
    changed = _unshared(content)
    assert isinstance(changed, dict)
    http = changed.setdefault("http_options", {})
    http["host"] = _ADDRESS
    for application in changed["applications"]:
        arguments = application.get("args") or {}
        if application["import_path"] == GATEWAY_IMPORT_PATH:
            if options.keys_secret is not None:
                arguments["api_keys_file"] = KEYS_FILE
        elif application["name"] in models:
            _move_models(arguments, models[application["name"]])
        application["args"] = arguments
    return changed


def own_modules(content: Content, serve_file: ServeFile) -> list[str]:
    """Modules of the user's that the image must have."""
    named = [model.config.architecture for model in serve_file.models]
    for model in serve_file.models:
        named += [step.name for step in (*model.config.preprocessing, *model.config.postprocessing)]
    applications = content.get("applications")
    assert isinstance(applications, list)
    named += [application.get("import_path") for application in applications]
    modules = {name.partition(":")[0] for name in named if name is not None and ":" in name}
    return sorted(module for module in modules if module.partition(".")[0] != "serve_app")


def _move_models(arguments: Content, models: list[PodModel]) -> None:
    entries = arguments.get("models")
    owners = entries if isinstance(entries, list) else [arguments]
    for owner, model in zip(owners, models, strict=True):
        owner["source"] = model.source
    first = models[0]
    if arguments.get("parallel") == "auto":
        arguments["parallel"] = {"pipeline": first.config.parallel.pipeline, "tensor": first.config.parallel.tensor}
    given = arguments.get("device")
    device = {**given} if isinstance(given, dict) else {}
    device["cpu_threads"] = first.num_threads  # the cores that a process sees are the node's
    if first.config.device.type == "cpu":
        device["cpus_per_shard"] = max(float(first.num_threads), first.config.device.cpus_per_shard)
    arguments["device"] = device


def _server_problems(content: Content, serve_file: ServeFile, options: KubeRayOptions) -> Iterator[Problem]:
    location = content.get("proxy_location")
    if location not in (None, "EveryNode"):
        message = f"{location} leaves no pod that answers, as the head takes no requests; remove it"
        yield Problem("proxy_location", message)
    http = content.get("http_options")
    for setting, value in http.items() if isinstance(http, dict) else ():
        if str(setting).startswith("ssl_") and value is not None:
            message = "its file is on this machine; TLS ends in front of the pods (--ingress, --gateway): remove it"
            yield Problem(f"http_options.{setting}", message)
    for where, port in (("http_options", serve_file.http_port), ("grpc_options", serve_file.grpc_port)):
        if port in _PORTS_IN_USE:
            yield Problem(f"{where}.port", f"{port} is the port of {_PORTS_IN_USE[port]} in a pod; set another port")
    args = f"applications[{serve_file.gateway_name}].args"
    if serve_file.gateway.api_keys_file is not None and options.keys_secret is None:
        file = serve_file.gateway.api_keys_file
        message = (
            f"{file} is a file of this machine; make a Secret of it (kubectl create secret generic rayshard-keys "
            f"--from-file=keys.txt={file}) and give --keys-secret rayshard-keys"
        )
        yield Problem(f"{args}.api_keys_file", message)
    if serve_file.gateway.batches is not None:
        message = (
            "a pod's disk is its own and ends with it; remove batches here, and add it with a ReadWriteMany volume "
            "that is mounted into every pod with a Gateway"
        )
        yield Problem(f"{args}.batches", message)
    allowed = serve_file.gateway.allowed_hosts
    if (
        options.entry is not None
        and allowed is not None
        and not any(_covers(one, options.entry.host) for one in allowed)
    ):
        message = f"{', '.join(allowed)} leave out --host {options.entry.host}, whose requests would be refused; add it"
        yield Problem(f"{args}.allowed_hosts", message)


def _covers(allowed: str, host: str) -> bool:
    return allowed in ("*", host) or (allowed.startswith("*.") and host.endswith(allowed[1:]))


def _with_settings(content: Content) -> Iterator[tuple[str, Content]]:
    """The parts of a Serve file that may say where logs go, or what a process runs in."""
    yield "", content
    applications = content.get("applications")
    for application in applications if isinstance(applications, list) else ():
        where = f"applications[{application['name']}]."
        yield where, application
        for deployment in application.get("deployments") or ():
            inner = f"{where}deployments[{deployment['name']}]."
            yield inner, deployment
            yield f"{inner}ray_actor_options.", deployment.get("ray_actor_options") or {}


def _log_problems(where: str, logging: object) -> list[Problem]:
    folder = logging.get("logs_dir") if isinstance(logging, dict) else None
    if folder is None or str(folder).startswith(WRITABLE):
        return []
    message = f"{shown(folder)} cannot be written in a pod, whose files are read-only; use a folder below /tmp"
    return [Problem(f"{where}logging_config.logs_dir", message)]


def _environment_problems(where: str, environment: object) -> list[Problem]:
    """Folders of this machine in a runtime_env; addresses are fetched by each pod."""
    if not isinstance(environment, dict):
        return []
    modules = environment.get("py_modules")
    named = [("working_dir", environment.get("working_dir"))]
    named += [("py_modules", one) for one in modules] if isinstance(modules, list) else []
    message = "is a folder of this machine, which no pod has; build it into the image, or give an address (https://...)"
    return [
        Problem(f"{where}runtime_env.{setting}", f"{shown(value)} {message}")
        for setting, value in named
        if value is not None and "://" not in str(value)
    ]


def _unshared(value: object) -> object:
    """A copy in which no part is there twice, as YAML's aliases make them."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value
