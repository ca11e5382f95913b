"""Serve's own schema as data: what a Serve file may contain around our own `args`.

Ray is not imported: a test compares these names with Ray's.
"""

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from serve_app.checkpoints.python_source import find_problem
from serve_app.config.base import ConfigModel

GATEWAY_IMPORT_PATH = "serve_app.app:build_gateway"
MODEL_IMPORT_PATH = "serve_app.app:build_model"
MODEL_SET_IMPORT_PATH = "serve_app.app:build_models"
GRAPH_IMPORT_PATH = "serve_app.app:build_graph"


class HttpOptions(ConfigModel):
    """Serve's `http_options`."""

    host: str = "0.0.0.0"
    """Address to listen on; Serve's default is every interface."""
    port: int = Field(default=8000, gt=0, le=65_535)
    """Port to listen on; not that of Ray's dashboard (8265). [port]"""
    root_path: object = None
    """Path that a proxy in front takes away."""
    request_timeout_s: object = None
    """Serve's own limit for a request; the Gateway's request_timeout_s tells clients and models of it, too."""
    keep_alive_timeout_s: object = None
    """How long an idle connection stays open, from its first answer on; null: 90."""
    ssl_keyfile: object = None
    """Private key for TLS."""
    ssl_certfile: object = None
    """Certificate for TLS."""
    ssl_keyfile_password: object = None
    """Of the private key."""
    ssl_ca_certs: object = None
    """Certificates that clients' own must be signed by."""


class GrpcOptions(ConfigModel):
    """Serve's `grpc_options`."""

    port: int = Field(default=9000, gt=0, le=65_535)
    """Port to listen on, where grpc_servicer_functions names any. [port]"""
    grpc_servicer_functions: list[str] = Field(default_factory=list)
    """What is served, by import paths: see docs/open-inference.md; none: nothing listens."""
    request_timeout_s: object = None
    """Serve's own limit for a call."""
    enable_reflection: object = None
    """Whether tools may ask which methods there are; null: true."""

    @field_validator("grpc_servicer_functions")
    @classmethod
    def _are_there(cls, value: list[str]) -> list[str]:
        for path in value:
            module_name, _, function = path.rpartition(".")
            problem = find_problem(module_name, function) if module_name else "write package.module.function"
            if problem is not None:
                raise ValueError(f"{path[:200]!r} cannot be called: {problem}")
        return value


class ActorOptions(ConfigModel):
    """Serve's `ray_actor_options` of a deployment."""

    runtime_env: object = None
    """Environment of the replica's process. Refused for a Router, which takes its application's."""
    num_cpus: float | None = Field(default=None, ge=0)
    """CPUs that Ray reserves for a replica; null: Serve's 1, and 0.05 where no option is set. Refused for a Router, see
    device.cpus_per_shard. [CPUs]"""
    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs that Ray reserves for a replica. Refused for a Router, see device. [GPUs]"""
    memory: float | None = Field(default=None, ge=0)
    """Memory that Ray reserves for a replica. Refused for a Router. [bytes]"""
    resources: object = None
    """Resources of your own that Ray reserves for a replica. Refused for a Router."""
    accelerator_type: str | None = None
    """Kind of GPU. Refused for a Router, see device."""
    label_selector: object = None
    """Labels of the nodes that it may run on. Refused for a Router."""
    fallback_strategy: object = None
    """Labels to try where none of those has room. Refused for a Router."""


class AutoscalingOptions(ConfigModel):
    """Serve's `autoscaling_config` of a deployment."""

    min_replicas: int = Field(default=1, ge=0)
    """Fewest copies; 0: the last one goes too when nothing is asked. [copies]"""
    initial_replicas: int | None = Field(default=None, ge=0)
    """Copies to begin with; null: min_replicas. [copies]"""
    max_replicas: PositiveInt = 1
    """Most copies. [copies]"""
    target_ongoing_requests: PositiveFloat | None = None
    """Requests under way that each copy should have, on average; null: 2, which is few for a model. [requests]"""
    metrics_interval_s: PositiveFloat | None = None
    """Deprecated by Serve."""
    look_back_period_s: PositiveFloat | None = None
    """Time over which requests are averaged; null: 30."""
    smoothing_factor: object = None
    """Deprecated by Serve."""
    upscale_smoothing_factor: object = None
    """Deprecated by Serve; use upscaling_factor."""
    downscale_smoothing_factor: object = None
    """Deprecated by Serve; use downscaling_factor."""
    upscaling_factor: object = None
    """How much of a wanted increase is done at once; null: all."""
    downscaling_factor: object = None
    """How much of a wanted decrease is done at once; null: all."""
    downscale_delay_s: object = None
    """How long fewer copies must have been enough before one goes; null: 600."""
    downscale_to_zero_delay_s: object = None
    """The same for the last copy; null: downscale_delay_s."""
    upscale_delay_s: object = None
    """How long more copies must have been wanted before one comes; null: 30."""
    aggregation_function: object = None
    """How the window's values become one: mean, max or min; null: mean."""
    policy: object = None
    """A policy of your own."""

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
    """Gateway, Router (of a model), Preprocessor (of a model's steps) or Graph, by the application."""
    num_replicas: object = None
    """Copies; auto: Serve's own autoscaling from 1 to 100; null: 1. [copies]"""
    max_ongoing_requests: PositiveInt | None = None
    """Requests that Serve gives a replica at once; null: as the deployment needs. [requests]"""
    max_queued_requests: object = None
    """Requests that wait in each of Serve's proxies; null: any number."""
    backpressure_config: object = None
    """What Serve answers when too many wait there."""
    user_config: object = None
    """Not used by ours."""
    autoscaling_config: AutoscalingOptions | None = None
    """How many copies there are, by load, in place of num_replicas."""
    graceful_shutdown_wait_loop_s: object = None
    """How often a leaving replica looks whether its requests have ended; null: 2."""
    graceful_shutdown_timeout_s: object = None
    """How long a leaving replica lets its requests run; null: 600."""
    health_check_period_s: object = None
    """How often Serve asks a replica whether it is well; null: 2."""
    health_check_timeout_s: object = None
    """How long it may take to answer; three failures in a row and it is replaced; null: 8."""
    ray_actor_options: ActorOptions = ActorOptions()
    """What Ray reserves for a replica."""
    placement_group_bundles: object = None
    """Refused for a Router: it follows from parallel and device."""
    placement_group_strategy: object = None
    """Refused for a Router: it follows from parallel and device."""
    placement_group_bundle_label_selector: object = None
    """Refused for a Router: it follows from parallel and device."""
    max_replicas_per_node: object = None
    """Most replicas on one node. Refused for a Router."""
    logging_config: object = None
    """Serve's logs of the replicas."""
    request_router_config: object = None
    """Not used by ours: a Gateway chooses copies itself."""
    gang_scheduling_config: object = None
    """Refused for a Router: its shards are placed together already."""
    deployment_actors: object = None
    """Not used by ours."""
    rolling_update_percentage: object = None
    """Share of the copies that a change replaces at once; null: 0.2."""
    max_surge_percent: object = None
    """Copies beyond their number while a change replaces them; null: 0, old ones go first."""

    @property
    def num_first_replicas(self) -> int:
        """How many replicas Serve begins with."""
        scaling = self.autoscaling_config
        if scaling is not None:
            return scaling.min_replicas if scaling.initial_replicas is None else scaling.initial_replicas
        return self.num_replicas if isinstance(self.num_replicas, int) else 1

    @field_validator("num_replicas")
    @classmethod
    def _is_number_of_replicas(cls, value: object) -> object:
        if value is None or value == "auto" or (type(value) is int and value > 0):
            return value
        raise ValueError(f"num_replicas={value!r} is not a number of replicas; use an integer from 1, or auto")

    @model_validator(mode="after")
    def _is_scaled_one_way(self) -> "DeploymentOptions":
        if self.autoscaling_config is not None and isinstance(self.num_replicas, int):
            raise ValueError(f"num_replicas={self.num_replicas} beside autoscaling_config; remove one of the two")
        return self


class ApplicationOptions(ConfigModel):
    """Serve's options of one application."""

    name: str = Field(min_length=1)
    """What Serve and `rayshard status` call it."""
    route_prefix: str | None = "/"
    """/ for the Gateway, null for everything else: models are reached through it."""
    import_path: str
    """serve_app.app:build_gateway, build_model, build_models or build_graph; others are left alone."""
    runtime_env: dict[str, object] = Field(default_factory=dict)
    """Environment of all of its processes."""
    deployments: list[object] = Field(default_factory=list)
    """Options of its deployments, below."""
    autoscaling_policy: object = None
    """A policy of your own for all deployments together."""
    args: object = None
    """The settings below, by import_path."""
    logging_config: object = None
    """Serve's logs of the application."""
    external_scaler_enabled: bool = False
    """Somebody else sets the number of copies, through Serve's API."""


class ServeOptions(ConfigModel):
    """Serve's top level."""

    proxy_location: object = None
    """Where Serve's proxies run: HeadOnly, EveryNode, Disabled; null: EveryNode."""
    http_options: HttpOptions = HttpOptions()
    """Where HTTP listens."""
    grpc_options: GrpcOptions = GrpcOptions()
    """Where gRPC listens."""
    controller_options: object = None
    """Of Serve's controller."""
    logging_config: object = None
    """Serve's logs."""
    tracing_config: object = None
    """Serve's traces."""
    applications: list[object]
    """One Gateway, and an application for each model, set of models, or graph."""
    target_capacity: object = None
    """Share of all copies that is to run, in percent; null: all."""
