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
    grpc_servicer_functions: list[str] = Field(default_factory=list)
    request_timeout_s: object = None
    enable_reflection: object = None

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
