"""The known settings of Serve are Ray's own."""

import pytest
from ray.serve import schema
from ray.serve._private.config import ReplicaConfig
from ray.serve.config import AutoscalingConfig

from serve_app.config.base import ConfigModel
from serve_app.planning.serve_options import (
    ActorOptions,
    ApplicationOptions,
    AutoscalingOptions,
    DeploymentOptions,
    GrpcOptions,
    HttpOptions,
    ServeOptions,
)


@pytest.mark.parametrize(
    ("ours", "of_ray"),
    [
        (ServeOptions, set(schema.ServeDeploySchema.model_fields)),
        (ApplicationOptions, set(schema.ServeApplicationSchema.model_fields) - {"host", "port"}),
        (DeploymentOptions, set(schema.DeploymentSchema.model_fields)),
        (HttpOptions, set(schema.HTTPOptionsSchema.model_fields)),
        (GrpcOptions, set(schema.gRPCOptionsSchema.model_fields)),
        (ActorOptions, set(schema.RayActorOptionsSchema.model_fields)),
        (AutoscalingOptions, set(AutoscalingConfig.model_fields)),
    ],
)
def test_the_known_settings_of_serve_are_those_of_ray(ours: type[ConfigModel], of_ray: set[str]) -> None:
    assert set(ours.model_fields) == of_ray


def test_serve_gives_one_cpu_to_a_replica_whose_actor_options_do_not_say() -> None:
    for options in ({}, {"memory": 1000}):
        assert ReplicaConfig.create(object, ray_actor_options=options).ray_actor_options["num_cpus"] == 1
