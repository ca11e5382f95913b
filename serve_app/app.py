"""The application builders that `serve_config.yaml` names: the only place that binds deployments.

Serve validates an application's `args` against a builder's annotation only when that is a class, not a string:
no postponed annotations here.
"""

import warnings
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from serve_app.backend.application import GRAPH_NAME, PREPROCESSOR_NAME, ROUTER_NAME
from serve_app.checkpoints.source import is_hub_id, pin_revision
from serve_app.config.engine import ParallelConfig
from serve_app.config.environment import read_environment
from serve_app.config.gateway import GatewayConfig
from serve_app.config.graph import GraphConfig
from serve_app.config.model import ModelConfig
from serve_app.config.model_set import ModelSetConfig
from serve_app.deployments.preprocessor import Preprocessor
from serve_app.deployments.router import BatchRouter, Router
from serve_app.gateway.deployment import Gateway
from serve_app.gateway.key_file import read_key_file
from serve_app.graphs.deployment import Graph
from serve_app.planning.auto_parallel import with_parallel
from serve_app.planning.autoscaling_options import autoscaling_options
from serve_app.planning.build_check import refuse_unloadable
from serve_app.planning.reservations import CPUS_PER_REPLICA, copy_bundles

_GATEWAY_MAX_ONGOING_REQUESTS = 10_000
_PREPROCESSOR_MAX_ONGOING_REQUESTS = 10_000
_GRAPH_MAX_ONGOING_REQUESTS = 1000
_SHUTDOWN_S = 600.0  # a replica that is to leave lets its requests end
# Three failed checks in a row and Serve replaces a replica: one that stands still is found within twenty seconds. A
# check asks our event loops only, which nothing blocks, and streams go on elsewhere.
_HEALTH_CHECKS = {"health_check_period_s": 2.0, "health_check_timeout_s": 5.0}
_NO_ACCESS_LOG = {"enable_access_log": False}  # Serve's own calls there are our housekeeping, every few seconds


def build_gateway(args: GatewayConfig) -> Application:
    """The Gateway's application."""
    deployment = serve.deployment(
        serve.ingress()(Gateway),
        name="Gateway",
        max_ongoing_requests=_GATEWAY_MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
        **_HEALTH_CHECKS,
        ray_actor_options={"num_cpus": CPUS_PER_REPLICA},
    )
    if args.api_keys_file is not None:  # replicas run elsewhere
        path = Path(args.api_keys_file).expanduser().absolute()  # a Secret's files are links, to others after a change
        read_key_file(path)
        args = args.model_copy(update={"api_keys_file": str(path)})
    return deployment.bind(args)


def build_model(args: ModelConfig) -> Application:
    """One model's application: a Router whose placement group holds its shards, and a Preprocessor for its steps."""
    _refuse_unloadable([args])
    config = with_parallel(_with_pinned_source(args), Path.cwd(), read_environment())
    router_class = Router if args.is_generative else BatchRouter
    bundles = copy_bundles(args.device, config.parallel, args.standby_shards)
    return _router(router_class, config, bundles).bind(config, _preprocessor([config]))


def build_models(args: ModelSetConfig) -> Application:
    """Several small models behind one Router and one shard process, each called by its own name."""
    _refuse_unloadable(args.shared_models)
    config = args.model_copy(update={"models": [_with_pinned_source(model) for model in args.models]})
    bundles = copy_bundles(args.device, ParallelConfig(), args.standby_shards)
    return _router(BatchRouter, config, bundles).bind(config, _preprocessor(config.models))


def build_graph(args: GraphConfig) -> Application:
    """Models of other applications joined to one that is called like a model; it waits for them when it starts."""
    deployment = serve.deployment(
        Graph,
        name=GRAPH_NAME,
        logging_config=_NO_ACCESS_LOG,
        max_ongoing_requests=_GRAPH_MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
        **_HEALTH_CHECKS,
        ray_actor_options={"num_cpus": CPUS_PER_REPLICA},
    )
    return deployment.bind(args)


def _router(
    router_class: type[Router] | type[BatchRouter],
    config: ModelConfig | ModelSetConfig,
    bundles: list[dict[str, float]],
) -> serve.Deployment:
    options: dict[str, Any] = {}
    if config.autoscaling is not None:
        options["autoscaling_config"] = autoscaling_options(config.autoscaling).model_dump(exclude_unset=True)
    with warnings.catch_warnings():
        # Serve would have its metrics' interval set by variables of all its processes, for every deployment at once.
        warnings.filterwarnings("ignore", "The `metrics_interval_s` field", DeprecationWarning)
        return serve.deployment(
            router_class,
            name=ROUTER_NAME,
            logging_config=_NO_ACCESS_LOG,
            # Above what the scheduler takes: it refuses, Serve waits.
            max_ongoing_requests=2 * (config.engine.max_num_seqs + config.engine.max_queued),
            graceful_shutdown_timeout_s=_SHUTDOWN_S,
            **_HEALTH_CHECKS,
            ray_actor_options={"num_cpus": CPUS_PER_REPLICA},
            placement_group_bundles=bundles,
            placement_group_strategy="PACK",
            **options,
        )


def _preprocessor(models: list[ModelConfig]) -> Application | None:
    """The deployment that runs the steps before and after models; None where no model has any."""
    with_steps = [model for model in models if model.has_chains]
    if not with_steps:
        return None
    deployment = serve.deployment(
        Preprocessor,
        name=PREPROCESSOR_NAME,
        logging_config=_NO_ACCESS_LOG,
        max_ongoing_requests=_PREPROCESSOR_MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
        **_HEALTH_CHECKS,
        ray_actor_options={"num_cpus": CPUS_PER_REPLICA},
    )
    return deployment.bind(with_steps)


def _refuse_unloadable(models: list[ModelConfig]) -> None:
    is_only_node = ray.is_initialized() and sum(node["Alive"] for node in ray.nodes()) == 1
    for model in models:
        refuse_unloadable(model, Path.cwd(), read_environment(), is_only_node=is_only_node)


def _with_pinned_source(config: ModelConfig) -> ModelConfig:
    """Resolved once for all replicas: a relative directory (they run elsewhere), a hub id's commit (it may move)."""
    directory = Path(config.source).expanduser()
    if directory.is_dir():
        return config.model_copy(update={"source": str(directory.resolve())})
    if is_hub_id(config.source, Path.cwd()):
        return config.model_copy(update={"revision": pin_revision(config.source, config.revision, read_environment())})
    return config
