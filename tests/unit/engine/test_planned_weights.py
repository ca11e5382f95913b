"""What planning says of a shard's weights and KV cache, against what the shard holds once it is loaded."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from bench.tiny_models import make_tiny, small_config
from serve_app.architectures.lookup import EMBEDDERS
from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.compress.quantize import QuantizeSettings, quantize
from serve_app.config.compression import QuantizationConfig
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.engine.batch_loader import load_batch_stage
from serve_app.engine.kv_cache import kv_shape_of
from serve_app.engine.loader import load_stage
from serve_app.models.linear_kernels import KERNELS, keeps_weight
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.planning.batch_plan import plan_batch
from serve_app.planning.device_profiles import PlannedDevice, load_profiles
from serve_app.planning.layer_weights import weigh
from serve_app.planning.planner import kv_shape_on, plan_shards, weigh_as_served
from serve_app.planning.served_model import plan_batch_model
from serve_app.types.shards import LoadQuantization
from tests.checkpoints import ARCHITECTURES, make_checkpoint
from tests.encoder_checkpoints import ENCODERS, make_encoder
from tests.quantized_checkpoints import make_model


def ratios(directory: Path, num_stages: int, num_ranks: int, wanted: LoadQuantization | None = None) -> list[float]:
    """Planned bytes of each shard, by those that it holds."""
    torch.set_num_threads(1)
    spec, found = read_model_spec(directory), []
    weights = weigh(spec, "float32", wanted)
    for shard in plan_shards(spec, num_stages, num_ranks).shards:
        loaded = load_stage(directory, "float32", shard, LoneCommunicator(), torch.device("cpu"), wanted)
        assert kv_shape_of(loaded.stage) == kv_shape_on(shard, spec, "float32")
        found.append(weights.bytes_on(shard) / loaded.parameter_bytes)
    return found


def config_of(linear_kernel: str) -> ModelConfig:
    engine = {"linear_kernel": linear_kernel}
    return ModelConfig.model_validate({"name": "m", "source": "m", "engine": engine, "dtype": "float32"})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_are_as_planned(tmp_path: Path, name: str) -> None:
    directory = make_checkpoint(name, tmp_path)
    assert ratios(directory, 1, 1) == [1.0]
    assert ratios(directory, 2, 1) == [1.0, 1.0]
    assert ratios(directory, 2, 2) == [1.0] * 4


@pytest.mark.parametrize(
    ("planned", "taken"),
    [("torch", "torch"), ("gemv", "gemv"), ("onednn", "onednn"), ("auto", "onednn"), ("compiled", "onednn")],
)
def test_a_tied_head_that_a_kernel_packs_is_planned_beside_its_embedding(
    tmp_path: Path, planned: str, taken: str
) -> None:
    directory, config = make_checkpoint("llama_tied", tmp_path), config_of(planned)
    spec, kept = read_model_spec(directory), config_of("torch")
    (shard,) = plan_shards(spec, 1, 1).shards
    cpu = torch.device("cpu")
    loaded = load_stage(directory, "float32", shard, LoneCommunicator(), cpu, linear_kernel=taken)
    assert weigh_as_served(spec, config).bytes_on(shard) == loaded.parameter_bytes
    table_bytes = spec.vocab_size * spec.hidden_size * 4 if taken == "onednn" else 0
    assert loaded.parameter_bytes - weigh_as_served(spec, kept).bytes_on(shard) == table_bytes


def test_no_head_is_packed_on_a_gpu(tmp_path: Path) -> None:
    spec = read_model_spec(make_checkpoint("llama_tied", tmp_path))
    on_gpu = ModelConfig.model_validate({"name": "m", "source": "m", "device": {"type": "cuda"}})
    assert weigh_as_served(spec, on_gpu) == weigh_as_served(spec, config_of("torch"))


def test_settings_know_which_kernels_keep_a_weight() -> None:
    kept = {kernel: not config_of(kernel).engine.may_pack_head for kernel in KERNELS}
    assert kept == {kernel: keeps_weight(kernel) for kernel in KERNELS}


@pytest.mark.parametrize(("num_kv_heads", "num_ranks"), [(2, 4), (1, 2), (1, 4)])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("gpt2", "opt")])
def test_key_value_heads_that_several_ranks_hold_are_planned_on_each(
    tmp_path: Path, name: str, num_kv_heads: int, num_ranks: int
) -> None:
    directory = make_checkpoint(name, tmp_path, num_key_value_heads=num_kv_heads)
    assert ratios(directory, 2, num_ranks) == [1.0] * 2 * num_ranks


def test_biases_are_planned_as_their_matrices_are_cut(tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path, attention_bias=True, mlp_bias=True, num_key_value_heads=1)
    assert ratios(directory, 1, 4) == [1.0] * 4


@pytest.mark.parametrize(
    "model_type", ["deepseek_v2", "deepseek_v3", "deepseek_v32", "qwen2_moe", "qwen3_moe", "gpt_oss"]
)
def test_attention_of_latents_and_experts_are_as_planned(tmp_path: Path, model_type: str) -> None:
    make_tiny(small_config(model_type), tmp_path)
    assert ratios(tmp_path, 2, 1) == pytest.approx([1.0, 1.0], rel=0.01)
    assert ratios(tmp_path, 1, 2) == pytest.approx([1.0, 1.0], rel=0.03)


@pytest.mark.parametrize("model_type", ["gemma4_text", "mimo_v2_flash"])
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_layers_of_other_heads_are_planned_by_their_own(tmp_path: Path, model_type: str, num_ranks: int) -> None:
    make_tiny(small_config(model_type), tmp_path)
    assert ratios(tmp_path, 2, num_ranks) == pytest.approx([1.0] * 2 * num_ranks, rel=0.002)


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2"])
@pytest.mark.parametrize(
    "given",
    [
        QuantizationConfig(scheme="int8"),
        QuantizationConfig(scheme="int8", include=["embedding"]),
        QuantizationConfig(scheme="int8", include=["embedding", "head"]),
        QuantizationConfig(scheme="int4", group_size=32),
    ],
    ids=str,
)
def test_weights_that_are_quantized_while_loading_are_as_planned(
    tmp_path: Path, name: str, given: QuantizationConfig
) -> None:
    directory = make_checkpoint(name, tmp_path)
    assert ratios(directory, 1, 1, given.for_loading) == [1.0]
    assert ratios(directory, 2, 1, given.for_loading) == [1.0, 1.0]


@pytest.mark.parametrize("name", ["llama", "llama_tied", "phi3", "qwen2"])
@pytest.mark.parametrize(
    "given", [QuantizationConfig(scheme="int8"), QuantizationConfig(scheme="int8", include=["head"])], ids=str
)
def test_what_ranks_quantize_of_key_value_heads_is_as_planned(
    tmp_path: Path, name: str, given: QuantizationConfig
) -> None:
    directory = make_checkpoint(name, tmp_path, num_key_value_heads=1)
    assert ratios(directory, 2, 2, given.for_loading) == [1.0] * 4


SPLITS: list[tuple[str, Mapping[str, object]]] = [
    *((name, {}) for name in ENCODERS),
    *((name, {"layers": [3, 1]}) for name in ENCODERS if name != "deberta-v2"),
    *((name, {"tensor": 4}) for name in ENCODERS if EMBEDDERS[name].tensor_cut is not None),
]


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_an_encoders_weights_are_as_planned(tmp_path: Path, name: str, split: Mapping[str, object]) -> None:
    torch.set_num_threads(1)
    make_encoder(name, tmp_path)
    config = ModelConfig.model_validate({"name": "m", "source": str(tmp_path), "task": "embed", "parallel": split})
    plan = plan_batch_model(config, tmp_path, read_environment({}))
    cpu = PlannedDevice("cpu", load_profiles()["cpu"], 2**34)
    for shard, planned in zip(plan.shards, plan_batch(plan, config, cpu, 1).memory.shards, strict=True):
        stage = load_batch_stage(plan.settings(shard), LoneCommunicator(), torch.device("cpu"))
        assert planned.weights_bytes == stage.parameter_bytes


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_quantized_checkpoints_weights_are_as_planned(tmp_path: Path, scheme: str, num_ranks: int) -> None:
    source = make_model("llama", tmp_path / "model", hidden_size=128, intermediate_size=256, num_key_value_heads=1)
    quantize(source, tmp_path / "quantized", QuantizeSettings(scheme))
    assert ratios(tmp_path / "quantized", 2, num_ranks) == [1.0] * 2 * num_ranks
