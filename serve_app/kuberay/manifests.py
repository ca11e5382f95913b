"""From a Serve file to the objects that serve it on Kubernetes, and to their YAML."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from serve_app.config.environment import Environment
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.kuberay.beside import disruption_budgets, network_policy, pod_monitor
from serve_app.kuberay.demand import UNKNOWN_MEMORY, Copies, ModelDemand, copies_of, demand_of
from serve_app.kuberay.entry import entry_objects
from serve_app.kuberay.options import KubeRayOptions
from serve_app.kuberay.pod_config import Content, PodModel, own_modules, pod_content, refuse_in_pods
from serve_app.kuberay.pod_paths import FoundSource, find_source
from serve_app.kuberay.pods import Part, Ports
from serve_app.kuberay.ray_service import ray_service
from serve_app.kuberay.worker_groups import worker_groups
from serve_app.planning.auto_parallel import with_parallel
from serve_app.planning.device_choice import Surroundings
from serve_app.planning.device_profiles import load_profiles
from serve_app.planning.serve_file import ModelApplication, ServeFile, load_serve_file
from serve_app.planning.serve_options import DeploymentOptions
from serve_app.planning.setting_problems import Problem
from serve_app.planning.yaml_document import read_document


@dataclass(frozen=True, slots=True)
class Manifests:
    """The objects, in the order in which they are made, and what people are to know."""

    objects: list[Part]
    remarks: list[str]

    @property
    def text(self) -> str:
        """One YAML stream; the same objects give the same bytes."""
        head = "".join(f"# {remark}\n" for remark in self.remarks)
        return head + "---\n".join(to_yaml(one) for one in self.objects)


def plan_manifests(path: Path, options: KubeRayOptions, environment: Environment) -> Manifests:
    """What serves the file at `path` on Kubernetes. Raises ConfigError that names every mistake."""
    problems = options.problems()
    if problems:
        raise ConfigError("\n".join(problems))
    serve_file = load_serve_file(path)
    content = _content_of(path)
    found = refuse_in_pods(content, serve_file, options)
    profiles = load_profiles(*([] if options.devices is None else [options.devices]))
    around = Surroundings(profiles, accelerator_type=options.gpu_type, memory_bytes=UNKNOWN_MEMORY)
    models: dict[str, list[_Model]] = {}
    for model in serve_file.models:
        try:
            models.setdefault(model.name, []).append(_find_model(model, path, options, environment, around))
        except ConfigError as error:
            found += [Problem(model.where, message) for message in error.message.split("\n")]
    _refuse(found)
    demands = _demands(models, path, environment, around)
    groups = worker_groups(demands, _all_replicas(content), around.profiles, options.gpus_per_pod)
    ports = Ports(serve_file.http_port, serve_file.grpc_port)
    told = {
        demand.name: [PodModel(one.config, one.source.in_pod, demand.num_threads) for one in models[demand.name]]
        for demand in demands
    }
    is_scaled = any(group.is_scaled for group in groups)
    needs_internet = any(one.source.is_on_hub or one.config.weights for own in models.values() for one in own)
    objects = [
        network_policy(options, ports, needs_internet=needs_internet, is_scaled=is_scaled),
        *disruption_budgets(options, groups),
        *([pod_monitor(options)] if options.has_monitoring else []),
        *entry_objects(options, ports),
        ray_service(options, pod_content(content, told, options), ports, groups),
    ]
    return Manifests(objects, _remarks(path, content, serve_file, options))


def to_yaml(value: object) -> str:
    """One object, or a list, as YAML, in the order in which it was written."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


@dataclass(frozen=True, slots=True)
class _Model:
    application: ModelApplication
    config: ModelConfig  # with its split; its source is that of this machine
    source: FoundSource


def _find_model(
    model: ModelApplication, path: Path, options: KubeRayOptions, environment: Environment, around: Surroundings
) -> _Model:
    base_dir = path.resolve().parent
    device = model.config.device
    if device.type == "cuda" and device.accelerator_type is None and options.gpu_type is None:
        raise ConfigError("device.type=cuda does not say which GPU; set device.accelerator_type, or give --gpu-type")
    source = find_source(model.config.source, base_dir, options.places)
    here = model.config.model_copy(update={"source": source.here})
    return _Model(model, with_parallel(here, base_dir, environment, around), source)


def _demands(
    models: dict[str, list[_Model]], path: Path, environment: Environment, around: Surroundings
) -> list[ModelDemand]:
    demands: list[ModelDemand] = []
    problems: list[Problem] = []
    for name, own in models.items():
        router = own[0].application.router
        configs = [one.config for one in own]
        try:
            demands.append(demand_of(name, configs, copies_of(router), path.resolve().parent, environment, around))
        except ConfigError as error:
            where = own[0].application.where
            problems += [Problem(where, message) for message in error.message.split("\n")]
    _refuse(problems)
    return demands


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise ConfigError("\n".join(str(problem) for problem in problems))


def _content_of(path: Path) -> Content:
    """The parsed file, which has been read without problems."""
    value = read_document(path).value
    assert isinstance(value, dict)
    return value


def _all_replicas(content: Content) -> Copies:
    """Serve's replicas of all deployments; an application has one of each that it does not mention."""
    applications = content["applications"]
    assert isinstance(applications, list)
    every = []
    for application in applications:
        given = [DeploymentOptions.model_validate(one) for one in application.get("deployments") or ()]
        every += [copies_of(one) for one in given] or [copies_of(None)]
        arguments = application.get("args") or {}
        if arguments.get("preprocessing") or arguments.get("postprocessing"):
            every.append(copies_of(None))
    return Copies(*(sum(getattr(one, which) for one in every) for which in ("least", "first", "most")))


def _remarks(path: Path, content: Content, serve_file: ServeFile, options: KubeRayOptions) -> list[str]:
    lines = [f"For KubeRay 1.7, printed by `rayshard kuberay` from {path.name}: change that file, and print this anew."]
    modules = own_modules(content, serve_file)
    if modules:
        lines.append(f"The image must have {', '.join(modules)}: {path.name} names what is in it.")
    if any(place.in_pod.is_relative_to("/app") for place in options.places):
        lines.append("The image must have the models below /app.")
    if options.has_ray_tls:
        lines.append("tlsOptions needs cert-manager, and KubeRay's operator with its feature gate RayClusterMTLS.")
    return lines


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, parts that are there twice written twice."""

    def ignore_aliases(self, *_: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
