"""A Serve file as a whole: its Gateway, its models and graphs, and every mistake in it at once."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from serve_app.config.base import ConfigModel
from serve_app.config.gateway import GatewayConfig
from serve_app.config.graph import GraphConfig
from serve_app.config.model import ModelConfig
from serve_app.config.model_set import ModelSetConfig
from serve_app.errors import ConfigError
from serve_app.planning.router_problems import router_problems
from serve_app.planning.serve_options import (
    GATEWAY_IMPORT_PATH,
    GRAPH_IMPORT_PATH,
    MODEL_IMPORT_PATH,
    MODEL_SET_IMPORT_PATH,
    ApplicationOptions,
    DeploymentOptions,
    ServeOptions,
)
from serve_app.planning.setting_problems import Problem, problems_of, shown
from serve_app.planning.yaml_document import read_document

_DASHBOARD_PORT = 8265


@dataclass(frozen=True, slots=True)
class ModelApplication:
    """One model of a Serve file."""

    name: str  # of the application
    where: str  # its settings are in the file
    config: ModelConfig
    router: DeploymentOptions | None  # None: the file does not mention the Router
    preprocessor: DeploymentOptions | None = None  # None: nor the Preprocessor


@dataclass(frozen=True, slots=True)
class GraphApplication:
    """One graph of a Serve file."""

    name: str  # of the application
    where: str  # its settings are in the file
    config: GraphConfig
    deployment: DeploymentOptions | None = None  # None: the file does not mention it


@dataclass(frozen=True, slots=True)
class ServeFile:
    """A Serve file without mistakes."""

    path: Path
    http_host: str
    http_port: int
    gateway_name: str
    gateway: GatewayConfig
    models: list[ModelApplication]
    graphs: list[GraphApplication] = field(default_factory=list)
    grpc_port: int | None = None  # None: nothing listens for gRPC
    has_tls: bool = False
    gateway_deployment: DeploymentOptions | None = None  # None: the file does not mention it


@dataclass(frozen=True, slots=True)
class ServeFileReport:
    """All that is known of a Serve file, with or without mistakes."""

    serve_file: ServeFile | None  # None when there are problems
    models: list[ModelApplication]  # those whose args are well-formed
    problems: list[Problem]
    graphs: list[GraphApplication] = field(default_factory=list)  # those whose args are well-formed
    has_unread_models: bool = False  # some models' args are not well-formed, so there are models not listed here
    gateway: GatewayConfig | None = None  # the first there is, when it is well-formed
    gateway_deployment: DeploymentOptions | None = None  # None: the file does not mention it


def load_serve_file(path: Path) -> ServeFile:
    """The Serve file at `path`. Raises ConfigError naming every mistake."""
    report = inspect_serve_file(path)
    if report.serve_file is None:
        raise ConfigError("\n".join(str(problem) for problem in report.problems))
    return report.serve_file


def check_serve_file(path: Path) -> list[Problem]:
    """Every mistake of the Serve file at `path`; the models' directories are not looked at."""
    return inspect_serve_file(path).problems


def inspect_serve_file(path: Path) -> ServeFileReport:
    """The Serve file at `path` as far as it can be read, and every mistake in it."""
    return _Inspection(path).run()


_AnyModel = TypeVar("_AnyModel", bound=ConfigModel)


class _Inspection:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._problems: list[Problem] = []
        self._gateways: dict[str, GatewayConfig] = {}  # by application; the config is of use only without problems
        self._gateway_deployment: DeploymentOptions | None = None
        self._models: list[ModelApplication] = []
        self._graphs: list[GraphApplication] = []
        self._num_models = 0
        self._has_unread_models = False

    def run(self) -> ServeFileReport:
        document = read_document(self._path)
        self._problems += document.problems
        if document.value is None:
            return ServeFileReport(None, [], self._problems)
        if not isinstance(document.value, dict):
            self._add(str(self._path), f"{shown(document.value)} is not a Serve file; begin with applications:")
            return ServeFileReport(None, [], self._problems)
        options = self._parse(ServeOptions, document.value, "")
        if options is not None:
            self._check_ports(options)
        applications = document.value.get("applications")
        self._check_applications(applications if isinstance(applications, list) else [])
        if options is None or self._problems:
            gateway = next(iter(self._gateways.values()), None)
            unread = self._has_unread_models
            return ServeFileReport(
                None, self._models, self._problems, self._graphs, unread, gateway, self._gateway_deployment
            )
        ((gateway_name, gateway),) = self._gateways.items()
        http, grpc = options.http_options, options.grpc_options
        serve_file = ServeFile(
            self._path,
            http.host,
            http.port,
            gateway_name,
            gateway,
            self._models,
            self._graphs,
            grpc.port if grpc.grpc_servicer_functions else None,
            has_tls=bool(http.ssl_keyfile and http.ssl_certfile),
            gateway_deployment=self._gateway_deployment,
        )
        return ServeFileReport(
            serve_file, self._models, [], self._graphs, gateway=gateway, gateway_deployment=self._gateway_deployment
        )

    def _add(self, where: str, message: str) -> None:
        self._problems.append(Problem(where, message))

    def _parse(self, model: type[_AnyModel], values: object, where: str) -> _AnyModel | None:
        try:
            return model.model_validate(values)
        except ValidationError as error:
            self._problems += problems_of(error, model, where)
            return None

    def _check_ports(self, options: ServeOptions) -> None:
        ports = {"http_options": options.http_options.port}
        if options.grpc_options.grpc_servicer_functions:  # without any, nothing listens
            ports["grpc_options"] = options.grpc_options.port
        if len(set(ports.values())) < len(ports):
            self._add("grpc_options.port", f"{options.grpc_options.port} is http_options.port too; set another port")
        for where, port in ports.items():
            if port == _DASHBOARD_PORT:
                self._add(f"{where}.port", f"{port} is the port of Ray's dashboard; set another port")

    def _check_applications(self, applications: list[object]) -> None:
        names = [raw.get("name") for raw in applications if isinstance(raw, dict)]
        for index, raw in enumerate(applications):
            name = raw.get("name") if isinstance(raw, dict) else None
            is_clear = isinstance(name, str) and bool(name) and names.count(name) == 1
            self._check_application(raw, f"applications[{name if is_clear else index}]")
        for name in sorted({str(name) for name in names if name is not None and names.count(name) > 1}):
            self._add("applications", f"name={name!r} is given more than once; give each application its own name")
        self._check_routes(applications)
        self._check_model_names()
        if not self._gateways:
            self._add("applications", f"no Gateway; add an application with import_path: {GATEWAY_IMPORT_PATH}")
        if not self._num_models:
            self._add("applications", f"no model; add an application with import_path: {MODEL_IMPORT_PATH}")

    def _check_application(self, raw: object, where: str) -> None:
        options = self._parse(ApplicationOptions, raw, where)
        if not isinstance(raw, dict):
            return
        name = options.name if options is not None else str(raw.get("name"))
        import_path = raw.get("import_path")
        if import_path == GATEWAY_IMPORT_PATH:
            self._check_gateway(name, raw, where)
        elif import_path == MODEL_IMPORT_PATH:
            self._check_model(name, raw, where)
        elif import_path == MODEL_SET_IMPORT_PATH:
            self._check_model_set(name, raw, where)
        elif import_path == GRAPH_IMPORT_PATH:
            self._check_graph(name, raw, where)
        elif isinstance(import_path, str):
            ours = [GATEWAY_IMPORT_PATH, MODEL_IMPORT_PATH, MODEL_SET_IMPORT_PATH, GRAPH_IMPORT_PATH]
            closest = difflib.get_close_matches(import_path, ours, n=1, cutoff=0.8)
            if closest or import_path.startswith("serve_app"):
                use = closest[0] if closest else ", ".join(ours)
                self._add(f"{where}.import_path", f"{shown(import_path)} is not one of ours; use {use}")

    def _check_gateway(self, name: str, raw: dict[str, object], where: str) -> None:
        config = self._parse(GatewayConfig, raw.get("args", {}), f"{where}.args")
        deployment = self._check_deployments(raw, ["Gateway"], where).get("Gateway")
        self._gateway_deployment = self._gateway_deployment or deployment
        if raw.get("route_prefix", "/") != "/":
            self._add(f"{where}.route_prefix", f"{shown(raw['route_prefix'])} cannot serve the Gateway; write /")
        if self._gateways:
            first = next(iter(self._gateways))
            self._add(where, f"second Gateway beside applications[{first}]; keep one: it serves all models")
        self._gateways[name] = config or GatewayConfig()

    def _check_model(self, name: str, raw: dict[str, object], where: str) -> None:
        self._num_models += 1
        config = self._parse(ModelConfig, raw.get("args", {}), f"{where}.args")
        needed = config.max_ongoing_requests if config is not None else 0
        has_steps = config is not None and config.has_chains
        found = self._check_deployments_of_model(raw, needed, where, has_steps=has_steps)
        if config is not None:
            self._models.append(ModelApplication(name, f"{where}.args", config, *found))
        self._has_unread_models |= config is None

    def _check_model_set(self, name: str, raw: dict[str, object], where: str) -> None:
        self._num_models += 1
        config = self._parse(ModelSetConfig, raw.get("args", {}), f"{where}.args")
        needed = config.engine.max_num_seqs + config.engine.max_queued if config is not None else 0
        has_steps = config is not None and any(model.has_chains for model in config.models)
        found = self._check_deployments_of_model(raw, needed, where, has_steps=has_steps)
        for index, model in enumerate(config.shared_models if config is not None else []):
            self._models.append(ModelApplication(name, f"{where}.args.models[{index}]", model, *found))
        self._has_unread_models |= config is None

    def _check_graph(self, name: str, raw: dict[str, object], where: str) -> None:
        config = self._parse(GraphConfig, raw.get("args", {}), f"{where}.args")
        deployment = self._check_deployments(raw, ["Graph"], where).get("Graph")
        self._check_hidden(raw, where)
        if config is not None:
            self._graphs.append(GraphApplication(name, f"{where}.args", config, deployment))

    def _check_deployments_of_model(
        self, raw: dict[str, object], needed: int, where: str, *, has_steps: bool
    ) -> tuple[DeploymentOptions | None, DeploymentOptions | None]:
        """Settings of Router and Preprocessor in a model's application, which has no route."""
        found = self._check_deployments(raw, ["Router", "Preprocessor"] if has_steps else ["Router"], where)
        router = found.get("Router")
        self._check_hidden(raw, where)
        if router is not None:
            self._problems += router_problems(router, raw.get("args"), needed, f"{where}.deployments[Router]")
        return router, found.get("Preprocessor")

    def _check_hidden(self, raw: dict[str, object], where: str) -> None:
        if "route_prefix" not in raw:
            self._add(f"{where}.route_prefix", "missing, and Serve would take /; write route_prefix: null")
        elif raw["route_prefix"] is not None:
            message = f"{shown(raw['route_prefix'])} would bypass the Gateway; write null"
            self._add(f"{where}.route_prefix", message)

    def _check_deployments(
        self, raw: dict[str, object], expected: list[str], where: str
    ) -> dict[str, DeploymentOptions]:
        """The settings of an application's deployments, as far as it has them."""
        found: dict[str, DeploymentOptions] = {}
        deployments = raw.get("deployments", [])
        for index, entry in enumerate(deployments if isinstance(deployments, list) else []):
            name = entry.get("name") if isinstance(entry, dict) else None
            label = f"{where}.deployments[{name if name in expected else index}]"
            options = self._parse(DeploymentOptions, entry, label)
            if isinstance(name, str) and name not in expected:
                use = " or ".join(expected)
                self._add(f"{label}.name", f"{shown(name)} is not a deployment of this application; use {use}")
            elif options is not None and options.name in found:
                self._add(label, f"{name} is given more than once; write one entry")
            elif options is not None:
                found[options.name] = options
        return found

    def _check_routes(self, applications: list[object]) -> None:
        routes = [raw.get("route_prefix") for raw in applications if isinstance(raw, dict)]
        for route in sorted({route for route in routes if isinstance(route, str) and routes.count(route) > 1}):
            self._add(
                "applications", f"route_prefix={route!r} is given more than once; the Gateway's is /, models' null"
            )

    def _check_model_names(self) -> None:
        owners: dict[str, ModelApplication | GraphApplication] = {}
        everything: list[ModelApplication | GraphApplication] = [*self._models, *self._graphs]
        for one in everything:
            owner = owners.setdefault(one.config.name, one)
            if owner.name != one.name:
                kind = "model" if isinstance(owner, ModelApplication) else "graph"
                message = f"{one.config.name!r} is the {kind} of applications[{owner.name}] too; give it another name"
                self._add(f"{one.where}.name", message)
