"""Quantized checkpoints as other tools write them: the numbers that they stand for, whole and split; or why not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.compress.local_model import LocalModel
from serve_app.engine.loader import load_stage
from serve_app.models.quantization import DequantizingLinear
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.types.shards import ShardSpec
from tests.checkpoints import load_reference
from tests.quantized_checkpoints import (
    INPUT_SCALE,
    INPUTS,
    compressed,
    make_model,
    pack_awq,
    pack_float8,
    pack_gptq,
    set_section,
)

SEQUENCES = [[5, 9, 17, 250, 3], [44], list(range(30, 71))]
CPU = torch.device("cpu")
BFLOAT16_ERROR = 0.03  # of a logit: what the kernel of 4 bits, which takes groups of 32 and more, does to these models


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("source"))


def error_of(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


def logits(directory: Path) -> Tensor:
    return LocalModel(directory, "float32").logits(SEQUENCES)


def gives_what_it_stands_for(directory: Path, tolerance: float = 1e-4) -> bool:
    return error_of(logits(directory), logits(directory / "dense")) < tolerance


def layer_bits(name: str) -> int | None:
    layer = int(name.split(".")[2]) if ".layers." in name else None
    return {0: 8, 1: 2, 2: 3}.get(layer, None if "self_attn" in name else 4)  # type: ignore[arg-type]


DYNAMIC = {
    r"-:.*\.layers\.3\.self_attn.*": {},
    r"+:.*\.layers\.0\..*": {"bits": 8},
    r".*\.layers\.1\..*": {"bits": 2},
    r"+:model\.layers\.2\.": {"bits": 3, "group_size": 16},
}


@pytest.mark.parametrize(
    "settings",
    [
        {"has_groups": False},
        {"has_groups": False, "group": -1},
        {"group": -1},
        {"is_v2": True, "checkpoint_format": "gptq_v2"},
        {"is_v2": True, "checkpoint_format": None, "format": "GPTQ_V2", "pack_dtype": None},
        {"checkpoint_format": "gptq", "meta": {"quantizer": ["gptqmodel:2.0"]}, "pack_dtype": "int32"},
        {"bits": lambda _name: 8} | {"section_bits": 8},
        {"bits": lambda _name: 3, "has_groups": False} | {"section_bits": 3},
        {"bits": lambda _name: 2} | {"section_bits": 2},
        {"has_head": True, "lm_head": True},
        {"bits": layer_bits, "dynamic": DYNAMIC},
        {"bits": layer_bits, "dynamic": DYNAMIC, "has_groups": False, "has_head": True, "lm_head": True},
        {"group": 24, "has_groups": False},  # 32 inputs: the last group is shorter
        {"group": 24},
    ],
    ids=" ".join,
)
def test_gptq_of_every_writer_gives_what_it_stands_for(source: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = dict(settings)
    bits = settings.pop("section_bits", 4)
    directory = pack_gptq(source, tmp_path / "packed", **settings)
    set_section(directory, bits=bits)
    assert gives_what_it_stands_for(directory, BFLOAT16_ERROR if settings.get("group") == -1 else 1e-4)


@pytest.mark.parametrize("has_method", [False, True])
def test_settings_beside_config_json_are_read(source: Path, tmp_path: Path, has_method: bool) -> None:
    directory = pack_gptq(source, tmp_path / "packed")
    _move_section(directory, "quantize_config.json", has_method=has_method)
    assert gives_what_it_stands_for(directory)
    awq = pack_awq(source, tmp_path / "awq")
    _move_section(awq, "quant_config.json", has_method=has_method, bits="w_bit", group_size="q_group_size")
    assert gives_what_it_stands_for(awq)


def test_settings_beside_config_json_mean_nothing_to_a_model_that_is_not_quantized(
    source: Path, tmp_path: Path
) -> None:
    directory = pack_gptq(source, tmp_path / "packed")
    _move_section(directory, "quantize_config.json", has_method=True)
    (directory / "quantize_config.json").rename(directory / "dense" / "quantize_config.json")
    assert read_model_spec(directory / "dense").quantization is None


def _move_section(directory: Path, name: str, *, has_method: bool, **renamed: str) -> None:
    config = json.loads((directory / "config.json").read_text())
    section = config.pop("quantization_config")
    if not has_method:
        del section["quant_method"]
    (directory / "config.json").write_text(json.dumps(config))
    (directory / name).write_text(json.dumps({renamed.get(key, key): value for key, value in section.items()}))


@pytest.mark.parametrize("version", ["gemm", "gemv", "GEMV"])
def test_awq_of_both_versions_gives_what_it_stands_for(source: Path, tmp_path: Path, version: str) -> None:
    assert gives_what_it_stands_for(pack_awq(source, tmp_path / "packed", version.lower()))


BLOCK = (16, 16)
FLOAT8: dict[str, tuple[dict[str, object], dict[str, Any]]] = {
    "tensor, inputs as they are": (compressed({"strategy": "tensor"}, None), {}),
    "tensor, static": (
        compressed({"strategy": "tensor"}, INPUTS | {"strategy": "tensor", "dynamic": False}),
        {"is_static": True},
    ),
    "block": (
        compressed(
            {"strategy": "block", "block_structure": list(BLOCK)},
            INPUTS | {"strategy": "group", "group_size": 16},
        ),
        {"block": BLOCK},
    ),
    "a block that does not divide": (
        compressed({"strategy": "block", "block_structure": [24, 24]}, None),
        {"block": (24, 24)},
    ),
}


@pytest.mark.parametrize("kind", FLOAT8)
def test_float8_of_compressed_tensors_gives_what_transformers_gives(source: Path, tmp_path: Path, kind: str) -> None:
    section, stored = FLOAT8[kind]
    directory = pack_float8(source, tmp_path / "packed", section, **stored)
    model = load_reference(directory)
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([sequence])).logits[0] for sequence in SEQUENCES])
    ours = logits(directory)
    # Both round inputs alike, but the last bit of a sum can tip a number that lies between two.
    assert error_of(ours, expected) < 5e-3
    if "as they are" in kind:
        assert gives_what_it_stands_for(directory)


@pytest.mark.parametrize(
    ("section", "stored"),
    [
        ({"activation_scheme": "static", "ignored_layers": ["lm_head"]}, {"is_static": True}),
        ({"activation_scheme": "dynamic"}, {}),
        ({"activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": list(BLOCK)}, {"block": BLOCK}),
        (
            {"weight_block_size": None, "activation_scheme": "static", "modules_to_not_convert": ["lm_head"]},
            {"is_static": True, "names": ("weight_scale_inv", "activation_scale")},
        ),
        ({"weight_block_size": list(BLOCK)}, {"block": BLOCK, "names": ("weight_scale_inv", "activation_scale")}),
    ],
    ids=str,
)
def test_fp8_of_other_writers_gives_what_it_stands_for(
    source: Path, tmp_path: Path, section: dict[str, object], stored: dict[str, Any]
) -> None:
    directory = pack_float8(source, tmp_path / "packed", {"quant_method": "fp8", **section}, **stored)
    assert error_of(logits(directory), logits(directory / "dense")) < 0.1  # what rounding inputs to float8 does
    layer = load(directory).get_submodule("model.layers.0.mlp.down_proj")
    assert isinstance(layer, DequantizingLinear)
    matrix = load_file(str(directory / "dense" / "model.safetensors"))["model.layers.0.mlp.down_proj.weight"]
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(layer(inputs), rounded(inputs, section) @ matrix.t(), rtol=1e-5, atol=1e-5)


def rounded(inputs: Tensor, section: dict[str, object]) -> Tensor:
    """inputs [M, K] by the scales that the scheme names, worked out again."""
    groups = inputs.view(len(inputs), -1, 16 if section.get("weight_block_size") else 64)
    scales = groups.abs().amax(dim=-1, keepdim=True) / 448
    if section.get("activation_scheme") == "static":
        scales = torch.tensor(INPUT_SCALE)
    return ((groups / scales).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scales).view(inputs.shape)


def load(directory: Path, rank: int = 0, num_ranks: int = 1) -> torch.nn.Module:
    shard = ShardSpec(0, 1, rank, num_ranks, 0, 4)
    model: torch.nn.Module = load_stage(directory, "float32", shard, LoneCommunicator(), CPU).stage.model
    return model


def test_scales_of_a_block_may_be_powers_of_two(source: Path, tmp_path: Path) -> None:
    section = {"quant_method": "fp8", "weight_block_size": list(BLOCK), "scale_fmt": "ue8m0"}
    directory = pack_float8(source, tmp_path / "packed", section, block=BLOCK)
    name = "model.layers.0.mlp.down_proj.weight"
    state = load_file(str(directory / "model.safetensors"))
    exact = torch.exp2(torch.log2(state[f"{name}_scale"]).round())
    state[f"{name}_scale"] = exact.to(torch.float8_e8m0fnu)
    save_file(state, str(directory / "model.safetensors"))
    layer = load(directory).get_submodule(name.removesuffix(".weight"))
    matrix = state[name].float() * exact.repeat_interleave(16, 0).repeat_interleave(16, 1)
    inputs = torch.eye(64)
    assert torch.allclose(layer(inputs), matrix.t(), rtol=1e-5)


@pytest.mark.parametrize("kind", [*FLOAT8, "gptq", "awq gemv"])
def test_ranks_hold_their_parts_of_a_weight_and_its_scales(source: Path, tmp_path: Path, kind: str) -> None:
    if kind in FLOAT8:
        section, stored = FLOAT8[kind]
        directory = pack_float8(source, tmp_path / "packed", section, **stored)
    elif kind == "awq gemv":
        directory = pack_awq(source, tmp_path / "packed", "gemv")
    else:
        directory = pack_gptq(source, tmp_path / "packed", group=32)  # o_proj's 32 inputs: cut within their group
        assert gives_what_it_stands_for(directory, BFLOAT16_ERROR)
    state = load_file(str(directory / "dense" / "model.safetensors"))
    for module_name, dim in (("self_attn.q_proj", 0), ("self_attn.o_proj", 1), ("mlp.down_proj", 1)):
        name = f"model.layers.1.{module_name}"
        matrix = state[f"{name}.weight"]
        half = matrix.shape[dim] // 2
        for rank in (0, 1):
            layer: Any = load(directory, rank, 2).get_submodule(name)
            own = matrix.narrow(dim, rank * half, half)
            identity = torch.eye(own.shape[1])
            # One-hot rows are numbers of float8 in their own scale, but for the static one.
            tolerance = 0.05 if "static" in kind else 1e-2
            assert torch.allclose(layer(identity).t(), own, rtol=tolerance, atol=1e-2 * float(own.abs().max()))


@pytest.mark.parametrize("kind", [*FLOAT8, "gptq", "awq gemm", "awq gemv"])
@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_ranks_that_share_a_key_value_head_hold_its_weight_and_scales(
    tmp_path: Path, kind: str, num_kv_heads: int
) -> None:
    source = make_model("llama", tmp_path / "source", hidden_size=64, num_key_value_heads=num_kv_heads)
    if kind in FLOAT8:
        section, stored = FLOAT8[kind]
        directory = pack_float8(source, tmp_path / "packed", section, **stored)
    elif kind == "gptq":
        directory = pack_gptq(source, tmp_path / "packed")
    else:
        directory = pack_awq(source, tmp_path / "packed", kind.removeprefix("awq "))
    for name in ("k_proj", "v_proj"):
        module = f"model.layers.1.self_attn.{name}"
        whole: Any = load(directory).get_submodule(module)
        heads = whole(torch.eye(64)).chunk(num_kv_heads, dim=-1)
        for rank in range(4):
            layer: Any = load(directory, rank, 4).get_submodule(module)
            assert layer(torch.eye(64)).shape == heads[0].shape
            assert torch.allclose(layer(torch.eye(64)), heads[rank * num_kv_heads // 4], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("sparsity", [{"format": "dense", "global_sparsity": 0.15, "ignore": ["lm_head"]}])
def test_dense_weights_of_a_sparsity_config_are_weights(
    source: Path, tmp_path: Path, sparsity: dict[str, object]
) -> None:
    section = compressed({"strategy": "tensor"}, None)
    directory = pack_float8(source, tmp_path / "packed", section)
    expected = logits(directory)
    set_section(directory, sparsity_config=sparsity)
    assert torch.equal(logits(directory), expected)
    config = json.loads((directory / "dense" / "config.json").read_text())
    config["compression_config"] = {"quant_method": "compressed-tensors", "sparsity_config": sparsity}
    (directory / "dense" / "config.json").write_text(json.dumps(config))
    assert read_model_spec(directory / "dense").quantization is None
