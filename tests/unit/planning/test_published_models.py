"""Plans of published models, from config.json and headers of weights, against the arithmetic of their sizes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.checkpoints.model_spec import ModelSpec, read_model_spec
from serve_app.config.model import ModelConfig
from serve_app.planning.device_profiles import PlannedDevice, load_profiles
from serve_app.planning.model_plan import ModelPlan, plan_model
from tests.published_models import PUBLISHED, write_published

SERVE_FILE = """
applications:
  - {{name: gateway, route_prefix: /, import_path: "serve_app.app:build_gateway"}}
  - {{name: chat, route_prefix: null, import_path: "serve_app.app:build_model", args: {args}}}
"""
PROGRAM = """
import sys, time
from serve_app.cli.main import main
status = main(sys.argv[1:])
assert not {"torch", "ray", "transformers"} & sys.modules.keys()
highest = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(time.process_time(), highest[0].split()[1], file=sys.stderr)
sys.exit(status)
"""
SPLITS = {  # that hold 8192 tokens on H200s
    "llama-3.1-8B": (1, 1),
    "llama-3.1-70B": (2, 2),
    "llama-3.1-405B": (2, 8),
    "mixtral-8x22B": (1, 4),
    "qwen3-235B": (2, 4),
}


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    root = tmp_path_factory.mktemp("published")
    return {name: read_model_spec(write_published(name, root / name)) for name in PUBLISHED}


def plan(spec: ModelSpec, name: str, pipeline: int, tensor: int, device: str = "h200", **changes: object) -> ModelPlan:
    values: dict[str, object] = {"parallel": {"pipeline": pipeline, "tensor": tensor}, "max_model_len": 8192} | changes
    config = ModelConfig.model_validate({"name": name, "source": name, "device": {"type": "cuda"}} | values)
    profile = load_profiles()[device]
    assert profile.memory is not None
    return plan_model(spec, config, PlannedDevice(device, profile, profile.memory), num_replicas=1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_the_publisher_says(specs: dict[str, ModelSpec], name: str) -> None:
    num_parameters = sum(math.prod(tensor.shape) for tensor in specs[name].tensors.values())
    assert num_parameters / 1e9 == pytest.approx(PUBLISHED[name].num_billions, rel=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_bytes_of_each_device_are_the_arithmetic_of_the_published_sizes(specs: dict[str, ModelSpec], name: str) -> None:
    config = PUBLISHED[name].config
    pipeline, tensor = SPLITS[name]
    planned = plan(specs[name], name, pipeline, tensor)
    assert planned.problems == []
    assert planned.memory is not None
    whole_bytes = 2 * PUBLISHED[name].num_billions * 1e9
    assert sum(shard.weights_bytes for shard in planned.memory.shards) == pytest.approx(whole_bytes, rel=0.01)
    num_kv_heads, num_layers = config["num_key_value_heads"], config["num_hidden_layers"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]  # type: ignore[operator]
    kv_bytes = 2 * 2 * num_kv_heads * head_dim * num_layers  # type: ignore[operator]
    cached = sum(shard.kv_cache_bytes for shard in planned.memory.shards)
    assert cached == pytest.approx(planned.memory.kv_cache_tokens * kv_bytes, rel=0.01)
    for shard in planned.memory.shards:
        num_own = shard.shard.end_layer - shard.shard.first_layer
        num_ends = shard.shard.is_first + shard.shard.is_last
        assert shard.weights_bytes == pytest.approx(_weights_of(config, num_ends, num_own) / tensor, rel=0.01)
        assert shard.total_bytes <= planned.memory.share_bytes


def _weights_of(config: dict[str, object], num_ends: int, num_layers: int) -> int:
    """Bytes in bfloat16 of one stage's matrices, by the sizes that are published."""
    sizes = {key: value for key, value in config.items() if isinstance(value, int)}
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    head_dim = sizes.get("head_dim", hidden // heads)
    attention = 2 * hidden * heads * head_dim + 2 * hidden * sizes["num_key_value_heads"] * head_dim
    num_experts = sizes.get("num_local_experts", sizes.get("num_experts", 1))
    mlp = 3 * hidden * sizes.get("moe_intermediate_size", sizes["intermediate_size"]) * num_experts
    return 2 * (num_layers * (attention + mlp) + num_ends * sizes["vocab_size"] * hidden)


def test_a_model_that_does_not_fit_is_refused_with_the_changes_that_fit(specs: dict[str, ModelSpec]) -> None:
    def problems(name: str, pipeline: int, device: str, **changes: object) -> list[str]:
        return plan(specs[name], "llama", pipeline, 1, device, **changes).problems

    whole = {"max_model_len": 131_072}
    (on_one,) = problems("llama-3.1-70B", 1, "h100", **whole)
    assert "which is more than 71.3 GiB of h100; " in on_one
    assert on_one.endswith("the cheapest change that fits: parallel: {pipeline: 3, tensor: 1} (3 devices)")
    assert problems("llama-3.1-70B", 3, "h100", **whole) == []
    (on_two,) = problems("llama-3.1-70B", 2, "h100", **whole)
    assert on_two.endswith("; or quantization: {scheme: int8}; or parallel: {pipeline: 3, tensor: 1} (3 devices)")
    assert problems("llama-3.1-70B", 2, "h100", **whole, quantization={"scheme": "int8"}) == []
    longest = number_after("the cheapest change that fits: max_model_len: ", on_two)
    assert problems("llama-3.1-70B", 2, "h100", max_model_len=longest) == []
    assert problems("llama-3.1-70B", 2, "h100", max_model_len=longest + 512) != []
    (large_cache,) = problems("llama-3.1-8B", 1, "l4", engine={"kv_cache_bytes": "20GiB"})
    smaller = number_after("the cheapest change that fits: engine.kv_cache_bytes: ", large_cache)
    assert problems("llama-3.1-8B", 1, "l4", engine={"kv_cache_bytes": smaller}) == []


def number_after(text: str, problem: str) -> int:
    return int(problem.partition(text)[2].partition(";")[0])


def test_no_change_is_proposed_where_none_fits(specs: dict[str, ModelSpec]) -> None:
    (problem,) = plan_on_cpu(specs["llama-3.1-8B"], memory_bytes=6 * 2**30).problems
    assert problem.endswith("would make it fit; take devices with more memory, or a smaller model")
    (larger,) = plan_on_cpu(specs["llama-3.1-8B"], memory_bytes=14 * 2**30).problems
    assert larger.endswith("the cheapest change that fits: quantization: {scheme: int8}")


def plan_on_cpu(spec: ModelSpec, memory_bytes: int) -> ModelPlan:
    config = ModelConfig.model_validate({"name": "llama", "source": "llama"})
    return plan_model(spec, config, PlannedDevice("cpu", load_profiles()["cpu"], memory_bytes), num_replicas=1)


def test_experts_that_no_token_of_a_step_goes_to_are_not_read(specs: dict[str, ModelSpec]) -> None:
    rates = plan(specs["qwen3-235B"], "qwen", 2, 4).rates
    assert rates is not None
    device = load_profiles()["h200"]
    all_bytes_s = 2 * PUBLISHED["qwen3-235B"].num_billions * 1e9 / 4 / device.read_rate
    active_bytes_s = 2 * 22e9 / 4 / device.read_rate  # of 22 billion active parameters
    assert all_bytes_s > 5 / rates.decode_tokens_per_s
    assert active_bytes_s < 1 / rates.decode_tokens_per_s < 2 * active_bytes_s
    assert rates.total_decode_tokens_per_s < 20 * rates.decode_tokens_per_s  # 64 sequences read nearly all experts


@pytest.mark.process
def test_the_command_plans_70_billion_parameters_in_3_s_and_300_mb_without_torch_or_ray(tmp_path: Path) -> None:
    write_published("llama-3.1-70B", tmp_path / "model")
    path = tmp_path / "serve.yaml"
    args = "{name: chat, source: model, parallel: {pipeline: 2, tensor: 2}, max_model_len: 8192}"
    path.write_text(SERVE_FILE.format(args=args))
    command = [sys.executable, "-c", PROGRAM, "plan", str(path), "--device", "h100", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [len(model["shards"]) for model in json.loads(ended.stdout)["models"]] == [4]
    cpu_s, highest_kib = ended.stderr.split()
    assert float(cpu_s) < 3
    assert int(highest_kib) < 300_000
