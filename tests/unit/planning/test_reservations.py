"""What applications reserve, and what a machine has."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.config.graph import GraphConfig
from serve_app.config.model import ModelConfig
from serve_app.planning.reservations import Machine, find_gpus, machine_problems, reserved_cpus
from serve_app.planning.serve_file import GraphApplication, ModelApplication
from serve_app.planning.serve_options import DeploymentOptions

GPU: dict[str, Any] = {"device": {"type": "cuda"}}


def model(name: str, num_replicas: int = 1, **args: Any) -> ModelApplication:
    config = ModelConfig.model_validate({"name": name, "source": "s", **args})
    return ModelApplication(name, f"{name}.args", config, DeploymentOptions(name="Router", num_replicas=num_replicas))


def test_reserved_cpus_are_those_of_the_deployments() -> None:
    one = model("m", num_replicas=3, task="classify", preprocessing=["lowercase"])
    graph = GraphConfig.model_validate({"name": "g", "steps": [{"name": "s", "model": "m"}], "output": "s"})
    graphs = [GraphApplication("g", "g.args", graph)]
    assert reserved_cpus([one, one], []) == pytest.approx(0.05 + 3 * (0.05 + 0.1) + 0.05)  # one application of two
    assert reserved_cpus([one], graphs) == pytest.approx(0.05 + 3 * (0.05 + 0.1) + 0.05 + 0.05)


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


def test_gpus_are_counted_by_their_devices(tmp_path: Path) -> None:
    assert find_gpus(tmp_path) == 0
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert find_gpus(tmp_path) == 2
    (tmp_path / "kfd").touch()
    assert find_gpus(tmp_path) is None
