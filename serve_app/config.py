"""The typed YAML: its settings, the check of a whole Serve file, and the process environment.

Ray is not imported: what Serve's own schema knows stands here as data, and a test compares it with Ray's.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from serve_app.errors import ConfigError

GATEWAY_IMPORT_PATH = "serve_app.app:build_gateway"
MODEL_IMPORT_PATH = "serve_app.app:build_model"
DEFAULT_CPU_KV_CACHE_BYTES = 256 * 1024**2

_MAX_FILE_BYTES = 1024**2
_MAX_NESTING = 32
_MAX_YAML_EVENTS = 20_000
_MAX_ALIASES = 100
_BYTE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_bytes(value: object) -> object:
    """Bytes of a size such as "256MiB" or "2GB"; what is no text passes through unchanged."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([A-Za-z]{1,3})", value)
    if match is None or match[2].upper() not in _BYTE_UNITS:
        raise ValueError(
            f"{value[:80]!r} is not a size; write a number of bytes, or one with a unit like 256MiB or 2GB"
        )
    return int(float(match[1]) * _BYTE_UNITS[match[2].upper()])


ByteSize = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


class ConfigModel(BaseModel):
    """Settings: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ParallelConfig(ConfigModel):
    """How one copy of a model is split: pipeline x tensor shards."""

    pipeline: PositiveInt = 1
    tensor: PositiveInt = 1


class DeviceConfig(ConfigModel):
    """What each shard runs on."""

    type: Literal["cpu", "cuda"] = "cpu"
    gpus_per_shard: float = Field(default=1.0, gt=0)
    cpu_threads: int | None = Field(default=None, gt=0, le=1024)  # of torch; None: the node's cores / its shards
    cpus_per_shard: PositiveFloat = 0.1  # what Ray reserves, not what a shard uses
    accelerator_type: str | None = None

    @field_validator("gpus_per_shard")
    @classmethod
    def _can_give_gpus(cls, value: float, info: ValidationInfo) -> float:
        _refuse_on_cpu("gpus_per_shard", value, info.data.get("type"))
        if value > 1 and not value.is_integer():
            raise ValueError(f"gpus_per_shard={value} is no share of a GPU; use at most 1, or a whole number")
        return value

    @field_validator("accelerator_type")
    @classmethod
    def _can_choose_accelerator(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            _refuse_on_cpu("accelerator_type", value, info.data.get("type"))
        return value


class EngineConfig(ConfigModel):
    """Batching and KV cache of one model copy; sizes in tokens unless said."""

    max_num_seqs: int = Field(default=64, gt=0, le=65_536)
    max_num_batched_tokens: int = Field(default=2048, gt=0, le=1_048_576)
    block_size: int = Field(default=16, gt=0, le=1024)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)  # cuda only
    kv_cache_bytes: ByteSize | None = None  # per shard; None: 256 MiB on cpu, by gpu_memory_utilization on cuda
    max_queued: int = Field(default=1024, gt=0, le=1_000_000)

    @model_validator(mode="after")
    def _can_step_all_sequences(self) -> "EngineConfig":
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than max_num_seqs={self.max_num_seqs}; "
                f"set max_num_batched_tokens to {self.max_num_seqs} or more, or lower max_num_seqs"
            )
        return self


class TimeoutConfig(ConfigModel):
    """How long Router and shards wait for one another."""

    load_s: PositiveFloat = 1800.0
    rendezvous_s: PositiveFloat = 120.0
    collective_s: PositiveFloat = 60.0
    heartbeat_s: PositiveFloat = 3.5


class ModelConfig(ConfigModel):
    """`args` of a model's application."""

    name: str
    source: str  # directory or hub id
    revision: str | None = None  # of a hub id
    task: Literal["generate"] = "generate"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    parallel: ParallelConfig = ParallelConfig()
    max_model_len: PositiveInt | None = None  # None: the model's own
    device: DeviceConfig = DeviceConfig()
    engine: EngineConfig = EngineConfig()
    timeouts: TimeoutConfig = TimeoutConfig()

    @field_validator("name")
    @classmethod
    def _is_plain_name(cls, value: str) -> str:
        part = r"[A-Za-z0-9][A-Za-z0-9._-]*"
        if len(value) > 64 or re.fullmatch(f"{part}(?:/{part})?", value) is None:
            raise ValueError(
                f"name={value[:80]!r} cannot be a model's name; use at most 64 letters, digits, '.', '_', '-' "
                "beginning with a letter or digit, with at most one '/'"
            )
        return value

    @field_validator("source", "revision")
    @classmethod
    def _is_not_blank(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and (not value or value != value.strip() or not value.isprintable()):
            raise ValueError(f"{info.field_name}={value[:80]!r} is blank or has stray spaces; write it without them")
        return value

    @field_validator("engine")
    @classmethod
    def _can_size_cache(cls, value: EngineConfig, info: ValidationInfo) -> EngineConfig:
        device = info.data.get("device")
        if "gpu_memory_utilization" not in value.model_fields_set or not isinstance(device, DeviceConfig):
            return value
        setting = f"gpu_memory_utilization={value.gpu_memory_utilization}"
        if device.type == "cpu":
            raise ValueError(f"{setting} has no effect on device.type=cpu; set kv_cache_bytes instead")
        if value.kv_cache_bytes is not None:
            raise ValueError(f"{setting} has no effect beside kv_cache_bytes={value.kv_cache_bytes}; remove one")
        return value

    @property
    def max_ongoing_requests(self) -> int:
        """Requests a Router replica may hold: running and queued."""
        return self.engine.max_num_seqs + self.engine.max_queued

    @property
    def kv_cache_bytes(self) -> int | None:
        """KV cache of one shard; None: to be derived from the GPU's memory."""
        if self.engine.kv_cache_bytes is None and self.device.type == "cpu":
            return DEFAULT_CPU_KV_CACHE_BYTES
        return self.engine.kv_cache_bytes


class GatewayConfig(ConfigModel):
    """`args` of the Gateway's application."""

    max_request_bytes: ByteSize = 1_048_576
    request_timeout_s: PositiveFloat | None = None
    queue_timeout_s: PositiveFloat | None = 30.0
    tokenizer_threads: int = Field(default=2, gt=0, le=256)
    chat_template_timeout_s: PositiveFloat = 1.0
    chat_template_max_bytes: ByteSize = 1_048_576  # of the rendered prompt
    client_buffer_tokens: PositiveInt = 4096  # a client that leaves more than this unread is aborted


class HttpOptions(ConfigModel):
    """Serve's `http_options`."""

    host: str = "0.0.0.0"
    port: int = Field(default=8000, gt=0, le=65_535)
    root_path: object = None
    request_timeout_s: object = None
    keep_alive_timeout_s: object = None
    ssl_keyfile: object = None
    ssl_certfile: object = None
    ssl_keyfile_password: object = None
    ssl_ca_certs: object = None


class GrpcOptions(ConfigModel):
    """Serve's `grpc_options`."""

    port: int = Field(default=9000, gt=0, le=65_535)
    grpc_servicer_functions: object = None
    request_timeout_s: object = None
    enable_reflection: object = None


class ActorOptions(ConfigModel):
    """Serve's `ray_actor_options` of a deployment."""

    runtime_env: object = None
    num_cpus: float | None = Field(default=None, ge=0)
    num_gpus: float | None = Field(default=None, ge=0)
    memory: float | None = Field(default=None, ge=0)
    resources: object = None
    accelerator_type: str | None = None
    label_selector: object = None
    fallback_strategy: object = None


class AutoscalingOptions(ConfigModel):
    """Serve's `autoscaling_config` of a deployment."""

    min_replicas: int = Field(default=1, ge=0)
    initial_replicas: int | None = Field(default=None, ge=0)
    max_replicas: PositiveInt = 1
    target_ongoing_requests: PositiveFloat | None = None
    metrics_interval_s: PositiveFloat | None = None
    look_back_period_s: PositiveFloat | None = None
    smoothing_factor: object = None
    upscale_smoothing_factor: object = None
    downscale_smoothing_factor: object = None
    upscaling_factor: object = None
    downscaling_factor: object = None
    downscale_delay_s: object = None
    downscale_to_zero_delay_s: object = None
    upscale_delay_s: object = None
    aggregation_function: object = None
    policy: object = None

    @model_validator(mode="after")
    def _has_room(self) -> "AutoscalingOptions":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}; raise max_replicas"
            )
        return self


class DeploymentOptions(ConfigModel):
    """Serve's options of one deployment, as the YAML gives them."""

    name: str
    num_replicas: object = None
    max_ongoing_requests: PositiveInt | None = None
    max_queued_requests: object = None
    backpressure_config: object = None
    user_config: object = None
    autoscaling_config: AutoscalingOptions | None = None
    graceful_shutdown_wait_loop_s: object = None
    graceful_shutdown_timeout_s: object = None
    health_check_period_s: object = None
    health_check_timeout_s: object = None
    ray_actor_options: ActorOptions = ActorOptions()
    placement_group_bundles: object = None
    placement_group_strategy: object = None
    placement_group_bundle_label_selector: object = None
    max_replicas_per_node: object = None
    logging_config: object = None
    request_router_config: object = None
    gang_scheduling_config: object = None
    deployment_actors: object = None
    rolling_update_percentage: object = None
    max_surge_percent: object = None

    @field_validator("num_replicas")
    @classmethod
    def _is_number_of_replicas(cls, value: object) -> object:
        if value is None or value == "auto" or (type(value) is int and value > 0):
            return value
        raise ValueError(f"num_replicas={value!r} is no number of replicas; use a whole number from 1, or auto")

    @model_validator(mode="after")
    def _is_scaled_one_way(self) -> "DeploymentOptions":
        if self.autoscaling_config is not None and isinstance(self.num_replicas, int):
            raise ValueError(f"num_replicas={self.num_replicas} beside autoscaling_config; remove one of the two")
        return self


class ApplicationOptions(ConfigModel):
    """Serve's options of one application."""

    name: str = Field(min_length=1)
    route_prefix: str | None = "/"
    import_path: str
    runtime_env: dict[str, object] = Field(default_factory=dict)
    deployments: list[object] = Field(default_factory=list)
    autoscaling_policy: object = None
    args: object = None
    logging_config: object = None
    external_scaler_enabled: bool = False


class ServeOptions(ConfigModel):
    """Serve's top level."""

    proxy_location: object = None
    http_options: HttpOptions = HttpOptions()
    grpc_options: GrpcOptions = GrpcOptions()
    controller_options: object = None
    logging_config: object = None
    tracing_config: object = None
    applications: list[object]
    target_capacity: object = None


@dataclass(frozen=True, slots=True)
class Environment:
    """What the project takes from environment variables."""

    hub_cache_dir: Path
    is_hub_offline: bool
    hub_endpoint: str | None  # None: the hub's own


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a Serve file."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(frozen=True, slots=True)
class ModelApplication:
    """One model of a Serve file."""

    name: str  # of the application
    config: ModelConfig
    router: DeploymentOptions | None  # None: the file leaves the Router as it is


@dataclass(frozen=True, slots=True)
class ServeFile:
    """A Serve file without mistakes."""

    path: Path
    http_host: str
    http_port: int
    gateway_name: str
    gateway: GatewayConfig
    models: list[ModelApplication]


@dataclass(frozen=True, slots=True)
class ServeFileReport:
    """All that is known of a Serve file, mistaken or not."""

    serve_file: ServeFile | None  # None when there are problems
    models: list[ModelApplication]  # those whose args are well-formed
    problems: list[Problem]


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """The environment of this process; `variables` stands in for it in tests."""
    given = os.environ if variables is None else variables
    home = Path(given.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    hub_home = Path(given.get("HF_HOME") or home).expanduser()
    offline = {given.get("HF_HUB_OFFLINE", "").upper(), given.get("TRANSFORMERS_OFFLINE", "").upper()}
    return Environment(
        hub_cache_dir=Path(given.get("HF_HUB_CACHE") or hub_home / "hub").expanduser(),
        is_hub_offline=bool(offline & {"1", "ON", "YES", "TRUE"}),
        hub_endpoint=given.get("HF_ENDPOINT") or None,
    )


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


def _refuse_on_cpu(setting: str, value: object, device_type: object) -> None:
    if device_type == "cpu":
        raise ValueError(f"{setting}={value!r} has no effect on device.type=cpu; remove it, or set type: cuda")


_AnyModel = TypeVar("_AnyModel", bound=ConfigModel)


class _Inspection:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._problems: list[Problem] = []
        self._gateways: dict[str, GatewayConfig] = {}  # by application; the config is of use only without problems
        self._models: list[ModelApplication] = []
        self._num_models = 0

    def run(self) -> ServeFileReport:
        document = _read_document(self._path)
        self._problems += document.problems
        if document.value is None:
            return ServeFileReport(None, [], self._problems)
        if not isinstance(document.value, dict):
            self._add(str(self._path), f"{_shown(document.value)} is not a Serve file; begin with applications:")
            return ServeFileReport(None, [], self._problems)
        options = self._parse(ServeOptions, document.value, "")
        applications = document.value.get("applications")
        self._check_applications(applications if isinstance(applications, list) else [])
        if options is None or self._problems:
            return ServeFileReport(None, self._models, self._problems)
        ((gateway_name, gateway),) = self._gateways.items()
        http = options.http_options
        serve_file = ServeFile(self._path, http.host, http.port, gateway_name, gateway, self._models)
        return ServeFileReport(serve_file, self._models, [])

    def _add(self, where: str, message: str) -> None:
        self._problems.append(Problem(where, message))

    def _parse(self, model: type[_AnyModel], values: object, where: str) -> _AnyModel | None:
        try:
            return model.model_validate(values)
        except ValidationError as error:
            self._problems += [_problem_of(details, model, where) for details in error.errors()]
            return None

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
        elif isinstance(import_path, str):
            ours = [GATEWAY_IMPORT_PATH, MODEL_IMPORT_PATH]
            closest = difflib.get_close_matches(import_path, ours, n=1, cutoff=0.8)
            if closest or import_path.startswith("serve_app"):
                use = closest[0] if closest else " or ".join(ours)
                self._add(f"{where}.import_path", f"{_shown(import_path)} is not one of ours; use {use}")

    def _check_gateway(self, name: str, raw: dict[str, object], where: str) -> None:
        config = self._parse(GatewayConfig, raw.get("args", {}), f"{where}.args")
        self._check_deployments(raw, "Gateway", where)
        if raw.get("route_prefix", "/") != "/":
            self._add(f"{where}.route_prefix", f"{_shown(raw['route_prefix'])} cannot serve the Gateway; write /")
        if self._gateways:
            first = next(iter(self._gateways))
            self._add(where, f"second Gateway beside applications[{first}]; keep one: it serves all models")
        self._gateways[name] = config or GatewayConfig()

    def _check_model(self, name: str, raw: dict[str, object], where: str) -> None:
        self._num_models += 1
        config = self._parse(ModelConfig, raw.get("args", {}), f"{where}.args")
        router = self._check_deployments(raw, "Router", where)
        if "route_prefix" not in raw:
            self._add(f"{where}.route_prefix", "missing, and Serve would take /; write route_prefix: null")
        elif raw["route_prefix"] is not None:
            message = f"{_shown(raw['route_prefix'])} would bypass the Gateway; write null"
            self._add(f"{where}.route_prefix", message)
        if router is not None:
            self._check_router(router, config, f"{where}.deployments[Router]")
        if config is not None:
            self._models.append(ModelApplication(name, config, router))

    def _check_deployments(self, raw: dict[str, object], expected: str, where: str) -> DeploymentOptions | None:
        found: DeploymentOptions | None = None
        deployments = raw.get("deployments", [])
        for index, entry in enumerate(deployments if isinstance(deployments, list) else []):
            name = entry.get("name") if isinstance(entry, dict) else None
            label = f"{where}.deployments[{expected if name == expected else index}]"
            options = self._parse(DeploymentOptions, entry, label)
            if isinstance(name, str) and name != expected:
                self._add(f"{label}.name", f"{_shown(name)} is no deployment of this application; use {expected}")
            elif options is not None and found is not None:
                self._add(label, f"{expected} is given more than once; write one entry")
            elif options is not None:
                found = options
        return found

    def _check_router(self, router: DeploymentOptions, config: ModelConfig | None, where: str) -> None:
        derived = [setting for setting in sorted(router.model_fields_set) if setting.startswith("placement_group_")]
        derived += sorted(router.model_fields_set & {"max_replicas_per_node", "gang_scheduling_config"})
        for setting in derived:
            value = _shown(getattr(router, setting))
            message = f"{value} cannot be set: placement follows from args.parallel and args.device; remove it"
            self._add(f"{where}.{setting}", message)
        actor = router.ray_actor_options
        for setting in sorted(actor.model_fields_set & {"num_cpus", "num_gpus", "accelerator_type"}):
            message = f"{_shown(getattr(actor, setting))} cannot be set for the Router; use args.device for its shards"
            self._add(f"{where}.ray_actor_options.{setting}", message)
        needed = config.max_ongoing_requests if config is not None else 0
        if router.max_ongoing_requests is not None and router.max_ongoing_requests < needed:
            message = (
                f"{router.max_ongoing_requests} is less than max_num_seqs + max_queued = {needed}; "
                "remove it, or lower args.engine.max_queued"
            )
            self._add(f"{where}.max_ongoing_requests", message)

    def _check_routes(self, applications: list[object]) -> None:
        routes = [raw.get("route_prefix") for raw in applications if isinstance(raw, dict)]
        for route in sorted({route for route in routes if isinstance(route, str) and routes.count(route) > 1}):
            self._add(
                "applications", f"route_prefix={route!r} is given more than once; the Gateway's is /, models' null"
            )

    def _check_model_names(self) -> None:
        owners: dict[str, str] = {}
        for model in self._models:
            owner = owners.setdefault(model.config.name, model.name)
            if owner != model.name:
                message = f"{model.config.name!r} is the model of applications[{owner}] too; give it another name"
                self._add(f"applications[{model.name}].args.name", message)


def _problem_of(details: ErrorDetails, model: type[ConfigModel], where: str) -> Problem:
    path = ".".join([*([where] if where else []), *(str(part) for part in details["loc"])]) or "file"
    is_secret = bool(details["loc"]) and re.search("password|token|secret", str(details["loc"][-1])) is not None
    value = "the value" if is_secret else _shown(details["input"])
    return Problem(path, _message_of(details, model, value))


def _message_of(details: ErrorDetails, model: type[ConfigModel], value: str) -> str:
    context = details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            return _unknown_setting(details["loc"], model)
        case "missing":
            return "missing; add it"
        case "value_error":
            return str(context["error"])
        case "int_type" | "int_parsing" | "int_from_float":
            return f"{value} is not a whole number; write digits without quotes or point"
        case "float_type" | "float_parsing":
            return f"{value} is not a number; write it without quotes"
        case "finite_number":
            return f"{value} is not finite; write a plain number"
        case "string_type":
            return f"{value} is not text; put it in quotes (YAML reads yes, no, on, off and bare numbers as values)"
        case "string_too_short":
            return f"{value} is empty; write a name"
        case "bool_type":
            return f"{value} is neither true nor false; write one of them without quotes"
        case "literal_error":
            return f"{value} is not known; use {context['expected']}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{value} is not a group of settings; write `setting: value` lines below it"
        case "list_type":
            return f"{value} is not a list; write entries that begin with a dash"
        case "greater_than":
            return f"{value} is too small; use more than {context['gt']:g}"
        case "greater_than_equal":
            return f"{value} is too small; use {context['ge']:g} or more"
        case "less_than_equal":
            return f"{value} is too large; use {context['le']:g} or less"
    return f"{value}: {details['msg']}"


def _unknown_setting(location: tuple[int | str, ...], model: type[ConfigModel]) -> str:
    *groups, unknown = location
    known = _group_at(model, groups).model_fields
    if model is ApplicationOptions and unknown in ("host", "port"):
        return f"belongs to the whole file; write http_options.{unknown}"
    closest = difflib.get_close_matches(str(unknown), known, n=1)
    if closest:
        return f"unknown setting; did you mean {closest[0]}?"
    return f"unknown setting; remove it, or use one of {', '.join(known)}"


def _group_at(model: type[ConfigModel], groups: list[int | str]) -> type[ConfigModel]:
    for group in groups:
        annotation = model.model_fields[str(group)].annotation
        (model,) = (
            option
            for option in (annotation, *get_args(annotation))
            if isinstance(option, type) and issubclass(option, ConfigModel)
        )
    return model


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True, slots=True)
class _Document:
    value: object
    problems: list[Problem]


def _read_document(path: Path) -> _Document:
    problems: list[Problem] = []
    value: object = None
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes are too many; a Serve file has at most {_MAX_FILE_BYTES}")
        text = path.read_bytes().decode("utf-8")
        _check_nesting(text)
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None or root.tag == "tag:yaml.org,2002:null":
            raise ValueError("empty file; begin with applications:")
        if _expanded_size(root, {}) > _MAX_YAML_EVENTS:
            raise ValueError(f"aliases repeat more than {_MAX_YAML_EVENTS} parts; write a plainer file")
        problems += [Problem(f"{path}, line {_line_of(node)}", message) for node, message in _node_problems(root)]
        value = loader.construct_document(root)
    except OSError as error:
        problems.append(Problem(str(path), f"cannot be read ({error.strerror}); give the path of a Serve file"))
    except UnicodeDecodeError as error:
        problems.append(Problem(str(path), f"byte {error.start} is not UTF-8; save the file as UTF-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = error.problem or error.context
        problems.append(Problem(str(path), f"{line}not YAML ({reason}); mend the syntax there"))
    except (yaml.YAMLError, ValueError) as error:
        problems.append(Problem(str(path), " ".join(str(error).split())))
    return _Document(value, problems)


def _check_nesting(text: str) -> None:
    # PyYAML's time grows with the square of open brackets, so those are counted before it sees them.
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        if depth > _MAX_NESTING:
            raise ValueError(f"more than {_MAX_NESTING} open brackets; nest less")
    depth = num_aliases = 0
    for num_events, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        num_aliases += isinstance(event, yaml.AliasEvent)
        if depth > _MAX_NESTING or num_events > _MAX_YAML_EVENTS or num_aliases > _MAX_ALIASES:
            raise ValueError(
                f"more than {_MAX_NESTING} levels, {_MAX_YAML_EVENTS} parts or {_MAX_ALIASES} aliases; "
                "write a plainer file"
            )


def _node_problems(root: yaml.Node) -> Iterator[tuple[yaml.Node, str]]:
    seen: set[int] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        pending += reversed(_children(node))
        message = _scalar_problem(node) if isinstance(node, yaml.ScalarNode) else None
        if message is not None:
            yield node, message
        if isinstance(node, yaml.MappingNode):
            yield from _key_problems(node)


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    # An alias can only point at what stands before it, whose size is known, or at what surrounds it.
    if id(node) not in sizes:
        sizes[id(node)] = _MAX_YAML_EVENTS + 1  # stays so while inside: an alias to what surrounds it has no end
        sizes[id(node)] = 1 + sum(_expanded_size(child, sizes) for child in _children(node))
    return sizes[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _key_problems(mapping: yaml.MappingNode) -> Iterator[tuple[yaml.Node, str]]:
    seen: set[str] = set()
    for key, _ in mapping.value:
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            yield key, f"key {_shown(key.value)} is not text; put it in quotes"
        elif key.value in seen:
            yield key, f"key {_shown(key.value)} is given twice in one place; keep one"
        else:
            seen.add(key.value)


def _scalar_problem(node: yaml.ScalarNode) -> str | None:
    text = _shown(node.value)[1:-1]
    digits = node.value.lstrip("+-")
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind not in ("str", "int", "float", "bool", "null", "merge"):
        return f"{text} reads as {kind} in YAML; put it in quotes"
    if kind in ("int", "float") and ":" in digits:
        return f"{text} reads as a number to base 60 in YAML; put it in quotes, or write the number out"
    if kind == "int" and re.fullmatch(r"0[0-7_]+|0b[01_]+", digits):
        return f"{text} reads as an octal or binary number in YAML; put it in quotes, or write the decimal number"
    if kind == "int" and len(digits) > 18:
        return f"{text} is too large a number; use at most 18 digits"
    if (
        kind == "str"
        and node.style is None
        and re.fullmatch(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]+|0[0-9]+", digits)
    ):
        return f"{text} reads as text in YAML, not as a number; put it in quotes, or write it like 1000.0"
    return None


def _line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
