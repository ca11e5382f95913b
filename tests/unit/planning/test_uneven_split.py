"""Stages over GPUs of several kinds: who gets how many layers, and what a Serve file must say for it."""

import json
from pathlib import Path

import pytest

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.cli.main import main
from serve_app.config.engine import DeviceConfig, ParallelConfig
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.planning.device_profiles import PlannedDevice, load_profiles
from serve_app.planning.generator_plan import plan_generator
from serve_app.planning.planner import check_split, plan_split
from serve_app.planning.reservations import copy_bundles
from serve_app.planning.stage_ends import stage_ends, uneven_stage_ends
from serve_app.planning.uneven_split import GpuKind, uneven_parallel
from tests.published_models import write_published
from tests.unit.planning.test_cluster import write

DEMO = Path(__file__).parents[3] / "examples" / "demo_model" / "model"
UNEVEN = """nodes:
  - {device: h100, devices: 2, cpus: 64, memory: 1TB}
  - {device: l4, devices: 4, cpus: 64, memory: 1TB}
"""
ONE_LARGE = UNEVEN.replace("h100, devices: 2", "h100, devices: 1").replace("devices: 4", "devices: 6")


def kind(name: str, *on_nodes: int) -> GpuKind:
    profile = load_profiles()[name]
    assert profile.memory is not None
    return GpuKind(PlannedDevice(name, profile, profile.memory), on_nodes)


def planned(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert isinstance(model, dict)
    return model


def test_a_stage_that_can_take_three_times_as_much_gets_three_times_the_layers() -> None:
    assert uneven_stage_ends([5] * 32, [3.0, 1.0]) == [24, 32]
    assert uneven_stage_ends([5] * 32, [1.0, 3.0]) == [8, 32]
    assert uneven_stage_ends([50, 10, 10, 10, 10, 10], [2.0, 1.0, 1.0]) == [2, 4, 6]


def test_every_stage_gets_a_layer_and_equal_ones_are_cut_as_ever() -> None:
    assert uneven_stage_ends([5] * 4, [1000.0, 1.0, 1.0]) == [2, 3, 4]
    weights = [9, 3, 3, 3, 4, 3, 3, 7]
    for num_stages in (1, 2, 3, 8):
        longest = [
            max(sum(weights[begin:end]) for begin, end in zip([0, *ends[:-1]], ends, strict=True))
            for ends in (uneven_stage_ends(weights, [1.0] * num_stages), stage_ends(weights, num_stages))
        ]
        assert longest[0] == longest[1]


def test_ranks_of_a_stage_stay_on_gpus_of_one_kind_and_one_node(tmp_path: Path) -> None:
    spec = read_model_spec(write_published("llama-3.1-70B", tmp_path / "llama"))
    config = ModelConfig.model_validate(
        {
            "name": "a",
            "source": "b",
            "device": {"type": "cuda"},
            "max_model_len": 1024,
            "parallel": {"pipeline": 3, "tensor": 2},
        }
    )
    assert uneven_parallel(spec, config, [kind("l4", 3), kind("h100", 3, 1)], 1) is None, "two groups, of six devices"
    found = uneven_parallel(spec, config, [kind("l4", 2), kind("h100", 2, 2)], 1)
    assert found is not None
    parallel, devices = found
    assert [one.name for one in devices] == ["h100", "h100", "l4"]
    assert parallel.accelerator_types == ["H100", "H100", "L4"]
    assert parallel.layers is not None
    first, second, last = parallel.layers
    assert first + second + last == 80
    assert first > 3 * last
    assert uneven_parallel(spec, config, [kind("l4", 2), kind("h100", 2, 2)], 2) is None, "not for two copies"


@pytest.mark.parametrize(("nodes", "split"), [(UNEVEN, "parallel: {pipeline: 4}"), (ONE_LARGE, "parallel: auto")])
def test_a_cluster_of_uneven_gpus_is_planned_over_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nodes: str, split: str
) -> None:
    command = write(tmp_path, nodes, f"device: {{type: cuda}}, {split}")
    assert main([*command, "--json", "--plot", str(tmp_path / "plan.svg")]) == 0
    model = planned(capsys)
    shards = model["shards"]
    assert isinstance(shards, list)
    assert {one["device"] for one in shards} == {"h100", "l4"}
    sizes = {one["device"]: one["layers"][1] - one["layers"][0] for one in shards}
    assert sizes["h100"] > 2 * sizes["l4"]
    for one in shards:
        assert one["total_bytes"] <= 0.9 * (79.2 if one["device"] == "h100" else 22.0) * 2**30
    assert "h100 (79.2 GiB), l4 (22.0 GiB)" in (tmp_path / "plan.svg").read_text()


def test_what_the_plan_says_to_write_is_planned_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(write(tmp_path, UNEVEN, "device: {type: cuda}, parallel: {pipeline: 4}")) == 0
    printed = capsys.readouterr().out
    assert "2 stages of h100 with 79.2 GiB each, then 2 stages of l4 with 22.0 GiB each" in printed
    wanted = printed.partition("write `")[2].partition("`")[0]
    assert "accelerator_types: [H100, H100, L4, L4]" in wanted
    command = write(tmp_path, UNEVEN, f"device: {{type: cuda}}, {wanted}")
    assert main(command) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[:6] == printed.splitlines()[:6]
    assert "write `" not in again
    assert "accelerator_type:H100, 2 of" in again, "what each stage reserves"
    assert main([*command[:2], "--json"]) == 0, "without a cluster as well"
    assert planned(capsys)["parallel"] == {
        "pipeline": 4,
        "tensor": 1,
        "layers": [one["layers"][1] - one["layers"][0] for one in shards_of(command, capsys)],
        "accelerator_types": ["H100", "H100", "L4", "L4"],
    }


def shards_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, list[int]]]:
    assert main([*command, "--json"]) == 0
    shards = planned(capsys)["shards"]
    assert isinstance(shards, list)
    return shards


def test_gpus_that_the_cluster_has_not_or_too_few_of_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = "parallel: {layers: [32, 32, 8, 8], accelerator_types: [H100, H100, L4, A100]}"
    assert main(write(tmp_path, UNEVEN, f"device: {{type: cuda}}, {split}")) == 1
    assert "parallel.accelerator_types=A100, and the cluster's GPUs are l4, h100" in capsys.readouterr().err
    split = "parallel: {layers: [27, 27, 26], accelerator_types: [H100, H100, H100]}"
    assert main(write(tmp_path, UNEVEN, f"device: {{type: cuda}}, {split}")) == 1
    assert "1 x 3 shards need 3 devices of h100, and the cluster has room for 2" in capsys.readouterr().err
    split = "parallel: {layers: [40, 40], accelerator_types: [H100, L4]}"
    assert main(write(tmp_path, UNEVEN, f"device: {{type: cuda}}, {split}")) == 1
    assert "stage 1 rank 0 takes weights 65.7 GiB" in capsys.readouterr().err


def test_layers_that_are_given_are_those_of_the_shards(tmp_path: Path) -> None:
    spec = read_model_spec(write_published("llama-3.1-8B", tmp_path / "llama"))
    parallel = ParallelConfig.model_validate({"layers": [20, 12], "tensor": 2})
    shards = plan_split(spec, parallel).shards
    assert [(one.first_layer, one.end_layer) for one in shards] == [(0, 20), (0, 20), (20, 32), (20, 32)]
    config = ModelConfig.model_validate({"name": "a", "source": "b", "parallel": {"layers": [20, 11]}})
    assert check_split(spec, config) == [
        "parallel.layers=[20, 11] are 31 layers, and the model has num_layers=32; let them add up to that"
    ]


def test_a_copy_is_started_with_the_layers_that_its_file_gives() -> None:
    settings = {"name": "demo", "source": str(DEMO), "parallel": {"layers": [1, 7]}}
    plan = plan_generator(ModelConfig.model_validate(settings), DEMO, read_environment({})).refuse_problems()
    made = [plan.settings(shard, 1).shard for shard in plan.shards]
    assert [(one.first_layer, one.end_layer) for one in made] == [(0, 1), (1, 8)]
    assert [one["GPU"] for one in copy_bundles(DeviceConfig(type="cuda"), plan.config.parallel)[1:]] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ({"parallel": {"pipeline": 3, "layers": [20, 12]}}, "is of 2 stages, and pipeline=3"),
        ({"parallel": {"layers": [20, 0]}}, "greater than 0"),
        ({"parallel": {"layers": [20, 12], "accelerator_types": ["H100"]}}, "is of 1 stages, and pipeline=2"),
        ({"parallel": {"accelerator_types": ["H100", "L4"]}}, "has no effect with device.type=cpu"),
        (
            {"parallel": {"accelerator_types": ["L4", "L4"]}, "device": {"type": "cuda", "accelerator_type": "H100"}},
            "remove one of them",
        ),
        (
            {"parallel": {"layers": [1, 2]}, "task": "predict", "architecture": "a.b:C"},
            "parallel.layers cannot spread architecture=a.b:C",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(args: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ModelConfig.model_validate({"name": "a", "source": "b", **args})
