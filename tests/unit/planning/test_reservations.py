"""What applications reserve, and what a machine lacks of it."""

from dataclasses import replace
from typing import Any

import pytest

from serve_app.config.engine import DeviceConfig, ParallelConfig
from serve_app.config.graph import GraphConfig
from serve_app.config.model import ModelConfig
from serve_app.planning.machine import Machine
from serve_app.planning.reservations import bundle_of, copy_bundles, cpu_engines, machine_problems, reserved_cpus
from serve_app.planning.serve_file import GraphApplication, ModelApplication
from serve_app.planning.serve_options import DeploymentOptions

GPU: dict[str, Any] = {"device": {"type": "cuda"}}
H200 = Machine(2, 2, "H200")


def model(name: str, num_replicas: int = 1, **args: Any) -> ModelApplication:
    config = ModelConfig.model_validate({"name": name, "source": "s", **args})
    return ModelApplication(name, f"{name}.args", config, DeploymentOptions(name="Router", num_replicas=num_replicas))


def shared_gpu(gpus_per_shard: float) -> dict[str, Any]:
    return {"device": {"type": "cuda", "gpus_per_shard": gpus_per_shard}}


def typed_gpu(accelerator_type: str) -> dict[str, Any]:
    return {"device": {"type": "cuda", "accelerator_type": accelerator_type}}


def test_reserved_cpus_are_those_of_the_deployments() -> None:
    one = model("m", num_replicas=3, task="classify", preprocessing=["lowercase"])
    graph = GraphConfig.model_validate({"name": "g", "steps": [{"name": "s", "model": "m"}], "output": "s"})
    graphs = [GraphApplication("g", "g.args", graph)]
    assert reserved_cpus([one, one], []) == pytest.approx(0.05 + 3 * (0.05 + 0.1) + 0.05)  # one application of two
    standing_by = model("n", num_replicas=2, parallel={"pipeline": 2}, standby_shards=1)
    assert reserved_cpus([standing_by], []) == pytest.approx(0.05 + 2 * (0.05 + 3 * 0.1))
    assert reserved_cpus([one], graphs) == pytest.approx(0.05 + 3 * (0.05 + 0.1) + 0.05 + 0.05)


@pytest.mark.parametrize(
    ("options", "reserved"),
    [
        ({}, 0.05),
        ({"max_ongoing_requests": 8}, 0.05),
        ({"num_replicas": 3}, 3 * 0.05),
        ({"ray_actor_options": {}}, 1.0),
        ({"ray_actor_options": {"memory": 2e9}, "num_replicas": 2}, 2.0),
        ({"ray_actor_options": {"num_cpus": 0.5}, "autoscaling_config": {"min_replicas": 2, "max_replicas": 4}}, 1.0),
        ({"ray_actor_options": {"num_cpus": 0}}, 0.0),
    ],
)
def test_replicas_beside_the_shards_reserve_what_serve_gives_them(options: dict[str, Any], reserved: float) -> None:
    def deployment(name: str) -> DeploymentOptions:
        return DeploymentOptions.model_validate({"name": name, **options})

    one = replace(model("m", preprocessing=["lowercase"], task="classify"), preprocessor=deployment("Preprocessor"))
    graph = GraphConfig.model_validate({"name": "g", "steps": [{"name": "s", "model": "m"}], "output": "s"})
    graphs = [GraphApplication("g", "g.args", graph, deployment("Graph"))]
    assert reserved_cpus([one], graphs, deployment("Gateway")) == pytest.approx(0.15 + 3 * reserved)
    assert reserved_cpus([replace(one, preprocessor=None)], [], None) == pytest.approx(0.15 + 2 * 0.05)


def test_a_gateway_that_asks_for_more_than_it_needs_is_told() -> None:
    gateway = DeploymentOptions.model_validate(
        {"name": "Gateway", "num_replicas": 2, "ray_actor_options": {"runtime_env": {}}}
    )
    assert machine_problems([model("m")], [], Machine(3, 0), gateway) == []
    (problem,) = machine_problems([model("m")], [], Machine(2, 0), gateway)
    assert str(problem) == (
        "applications: the applications reserve 2.15 CPUs, and this machine has 2 (m: 1 replica x 1 shard x "
        "cpus_per_shard=0.1, Gateway: 2 replicas x 1); set ray_actor_options.num_cpus to less (0.05 is enough), lower "
        "device.cpus_per_shard, or serve fewer models or copies (a reservation is no limit: shards may use all cores)"
    )


def test_the_processes_of_a_copy_have_room_in_their_bundles() -> None:
    device, parallel = DeviceConfig(cpus_per_shard=0.3), ParallelConfig(pipeline=2, tensor=3)
    bundles = copy_bundles(device, parallel, num_standby=2)
    places = [bundle_of(place, parallel) for place in range(1 + parallel.num_shards + 2)]
    assert places == [0, 1, 1, 1, 2, 2, 2, 1, 2]  # what stands by for a rank is on the node of its stage
    assert [bundle["CPU"] for bundle in bundles] == pytest.approx([0.05, 1.2, 1.2])


@pytest.mark.parametrize(
    ("pipeline", "tensor", "num_standby", "sizes"),
    [(1, 2, 1, [3]), (3, 2, 2, [3, 3, 2]), (2, 2, 3, [4, 3]), (2, 1, 1, [1, 1, 1]), (2, 3, 0, [3, 3])],
)
def test_no_bundle_has_more_processes_than_it_has_room_for(
    pipeline: int, tensor: int, num_standby: int, sizes: list[int]
) -> None:
    device, parallel = DeviceConfig(cpus_per_shard=1.0), ParallelConfig(pipeline=pipeline, tensor=tensor)
    assert [bundle["CPU"] for bundle in copy_bundles(device, parallel, num_standby)] == [0.05, *sizes]
    places = [bundle_of(place, parallel) for place in range(1, 1 + parallel.num_shards + num_standby)]
    assert [places.count(1 + bundle) for bundle in range(len(sizes))] == sizes


def test_a_model_that_may_sleep_begins_with_one_copy() -> None:
    for scaling, num_copies in (({"min_replicas": 0}, 1), ({"min_replicas": 3}, 3)):
        scaled = replace(model("m", autoscaling={"max_replicas": 9, **scaling}), router=None)
        assert reserved_cpus([scaled], []) == pytest.approx(0.05 + num_copies * (0.05 + 0.1))


def test_the_engines_on_cpu_are_those_of_its_applications() -> None:
    module = model("module", task="predict", architecture="a:B")
    encoder = model("encoder", task="embed")
    assert cpu_engines([model("m"), model("n"), model("gpu", task="embed", **GPU)]) == ["generation"]
    assert cpu_engines([module, encoder]) == ["batch", "module"]
    assert cpu_engines([replace(module, name="both"), replace(encoder, name="both")]) == ["batch"]


@pytest.mark.parametrize(
    ("models", "machine", "told"),
    [
        (
            [model("m", num_replicas=40)],
            Machine(2, 0),
            ["applications: the applications reserve 6.05 CPUs, and"],
        ),
        ([model("m", device={"cpus_per_shard": 2.0})], Machine(2, 0), ["applications: the applications reserve 2.1"]),
        ([model("m", **GPU)], Machine(2, 0), ["m.args.device: type=cuda, and this machine has no GPU that"]),
        (
            [model("m", 3, **GPU)],
            Machine(2, 2),
            ["applications: the applications reserve 3 GPUs, and this"],
        ),
        ([model("m", **GPU, parallel={"tensor": 2})], Machine(2, 1), ["applications: the applications reserve 2 GPUs"]),
        ([model("m", 2, **GPU), model("n", **GPU)], Machine(2, 3), []),
        ([model("m", 9, **GPU)], Machine(8, None), []),
        ([model("m", 9)], Machine(2, 0), []),
    ],
)
def test_what_ray_would_wait_for_is_told(models: list[ModelApplication], machine: Machine, told: list[str]) -> None:
    problems = machine_problems(models, [], machine)
    assert len(problems) == len(told)
    for problem, beginning in zip(problems, told, strict=True):
        assert str(problem).startswith(beginning)


def test_a_lack_of_gpus_names_models_copies_shards_and_the_way_out() -> None:
    models = [model("m", 2, **GPU, parallel={"tensor": 2}), model("n", **shared_gpu(0.5)), model("on-cpu")]
    (problem,) = machine_problems(models, [], Machine(2, 4))
    assert str(problem) == (
        "applications: the applications reserve 4.5 GPUs, and this machine has 4 (m: 2 replicas x 2 shards x "
        "gpus_per_shard=1, n: 1 replica x 1 shard x gpus_per_shard=0.5); lower parallel, num_replicas or "
        "device.gpus_per_shard (a shard's share lies on one GPU), or serve fewer models on GPUs"
    )


def test_a_lack_of_cpus_names_the_same() -> None:
    (problem,) = machine_problems([model("m", 3, device={"cpus_per_shard": 0.9})], [], Machine(2, 0))
    assert "reserve 2.9 CPUs, and this machine has 2 (m: 3 replicas x 1 shard x cpus_per_shard=0.9); low" in str(
        problem
    )


def test_processes_that_stand_by_are_counted_and_told() -> None:
    one = model("m", 2, parallel={"pipeline": 2}, standby_shards=1, device={"cpus_per_shard": 0.5})
    assert machine_problems([one], [], Machine(4, 0)) == []
    (problem,) = machine_problems([one], [], Machine(3, 0))
    assert "reserve 3.15 CPUs, and this machine has 3 (m: 2 replicas x (2 shards + 1 standby) x cpus_per_shard" in str(
        problem
    )


def test_models_of_one_application_are_told_once_where_their_device_is_set() -> None:
    both = [replace(model(name, **GPU), name="set", where=f"set.args.models[{i}]") for i, name in enumerate("ab")]
    (problem,) = machine_problems(both, [], Machine(2, 0))
    assert str(problem) == (
        "set.args.device: type=cuda, and this machine has no GPU that its driver and CUDA_VISIBLE_DEVICES show (the "
        "models of set: 1 replica x 1 shard x gpus_per_shard=1); set cpu, or serve where there is one"
    )


@pytest.mark.parametrize(
    ("models", "num_gpus", "has_room"),
    [
        ([model("m", 10, **shared_gpu(0.1))], 1, True),  # in floats, ten tenths are less than one
        ([model("m", 3, **shared_gpu(1 / 3))], 1, True),
        ([model("m", 3, **shared_gpu(0.6))], 2, False),  # 1.8 of 2, and no GPU takes two
        ([model("m", 2, **shared_gpu(0.4)), model("n", 2, **shared_gpu(0.6))], 2, True),
        ([model("m", **shared_gpu(0.4)), model("n", **GPU), model("o", **shared_gpu(0.6))], 2, True),
    ],
)
def test_a_share_lies_on_one_gpu(models: list[ModelApplication], num_gpus: int, has_room: bool) -> None:
    assert (machine_problems(models, [], Machine(2, num_gpus)) == []) is has_room


@pytest.mark.parametrize(
    ("models", "machine", "told"),
    [
        ([model("m", **typed_gpu("H200"))], H200, []),
        ([model("m", **GPU)], H200, []),
        ([model("m", **typed_gpu("A100"))], Machine(2, 2), []),  # the driver does not say
        (
            [model("m", **typed_gpu("A100")), model("n", **typed_gpu("H200"))],
            H200,
            [
                "m.args.device.accelerator_type: accelerator_type=A100, and to Ray this machine's GPUs are H200 (m: 1 "
                "replica x 1 shard x gpus_per_shard=1); write H200, remove it, or serve where there is one"
            ],
        ),
    ],
)
def test_another_type_of_gpu_is_told(models: list[ModelApplication], machine: Machine, told: list[str]) -> None:
    assert [str(problem) for problem in machine_problems(models, [], machine)] == told
