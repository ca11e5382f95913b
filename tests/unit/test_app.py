"""The application builders, as Serve itself calls them."""

import inspect
import shutil
from pathlib import Path
from typing import Any

import pydantic
import pytest
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from serve_app.app import build_gateway, build_model
from serve_app.config.engine import ParallelConfig
from serve_app.config.gateway import GatewayConfig
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError

MODEL: dict[str, Any] = {"name": "demo", "source": "examples/demo_model/model"}


def test_serve_sees_classes_as_annotations_so_that_it_validates() -> None:
    assert inspect.signature(build_model).parameters["args"].annotation is ModelConfig
    assert inspect.signature(build_gateway).parameters["args"].annotation is GatewayConfig


@pytest.mark.parametrize(
    ("builder", "args"),
    [(build_model, {**MODEL, "nosuch": 1}), (build_model, {"name": "demo"}), (build_gateway, {"max_request_byte": 1})],
)
def test_serve_refuses_args_that_our_models_refuse(builder: Any, args: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        call_user_app_builder_with_args_if_necessary(builder, args)


def test_a_model_reserves_one_bundle_for_each_stage_beside_its_router() -> None:
    options = deployment_options({**MODEL, "parallel": {"pipeline": 2, "tensor": 2}})
    assert options["placement_group_bundles"] == [{"CPU": 0.05}, *[{"CPU": 0.2}] * 2]
    assert sum(bundle["CPU"] for bundle in options["placement_group_bundles"]) < 2


def test_a_process_that_stands_by_has_a_bundle_as_a_shard_has() -> None:
    options = deployment_options({**MODEL, "parallel": {"pipeline": 2}, "standby_shards": 1})
    assert options["placement_group_bundles"] == [{"CPU": 0.05}, *[{"CPU": 0.1}] * 3]


def test_shards_on_gpus_reserve_them() -> None:
    device = {"type": "cuda", "gpus_per_shard": 1.0, "accelerator_type": "H100"}
    options = deployment_options({**MODEL, "device": device, "parallel": {"pipeline": 1, "tensor": 2}})
    stage = {"CPU": 0.2, "GPU": 2.0, "accelerator_type:H100": 0.001}
    assert options["placement_group_bundles"] == [{"CPU": 0.05}, stage], "its ranks are on one node"


def test_a_router_gets_more_calls_than_it_may_run_and_queue_so_that_it_refuses_them_itself() -> None:
    application = build(build_model, {**MODEL, "engine": {"max_num_seqs": 8, "max_queued": 100}})
    assert application._bound_deployment.max_ongoing_requests == 216


def test_a_relative_source_is_absolute_in_the_replicas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(MODEL["source"], tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    application = build(build_model, {"name": "x", "source": "model"})
    assert application._bound_deployment.init_args[0].source == str(tmp_path / "model")


def test_what_could_not_be_loaded_is_refused_when_it_is_built(tmp_path: Path) -> None:
    source = shutil.copytree(MODEL["source"], tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ConfigError, match="no safetensors files"):
        build(build_model, {"name": "x", "source": str(source)})


def deployment_options(args: dict[str, Any]) -> dict[str, Any]:
    config = build(build_model, args)._bound_deployment._replica_config
    return {"placement_group_bundles": config.placement_group_bundles}


def build(builder: Any, args: dict[str, Any]) -> Application:
    application = call_user_app_builder_with_args_if_necessary(builder, args)
    assert isinstance(application, Application)
    return application


def test_a_split_that_is_left_to_planning_is_chosen_when_the_application_is_built() -> None:
    application = build(build_model, {**MODEL, "parallel": "auto"})
    parallel = application._bound_deployment.init_args[0].parallel
    assert (type(parallel), parallel.num_shards) == (ParallelConfig, 1)
    config = application._bound_deployment._replica_config
    assert config.placement_group_bundles == [{"CPU": 0.05}, {"CPU": 0.1}]
