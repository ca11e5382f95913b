"""Quantized checkpoints that do not fit what their config.json says: refused by name, before weights are read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.cli.main import main
from serve_app.errors import ConfigError
from tests.quantized_checkpoints import INPUTS, compressed, make_model, pack_float8, pack_gptq, set_section


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("source"))


def drop(leaf: str) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if name.endswith(leaf)]:
            del state[name]

    return change


def halve(leaf: str) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if name.endswith(leaf)]:
            state[name] = state[name][: len(state[name]) // 2].contiguous()

    return change


def keep(_state: dict[str, Tensor]) -> None:
    """As it is."""


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ({"bits": 8}, keep, r"down_proj\.weight: scales has shape \[4, 32\].* needs \[2, 32\]"),
        ({"group_size": 8}, keep, r"scales has shape \[4, 32\].* needs \[8, 32\]"),
        ({"bits": 5}, keep, "gptq with 5 bits in groups of 16 is not served; use one of 2, 3, 4, 8"),
        ({"checkpoint_format": "marlin"}, keep, "checkpoint_format='marlin' is not served; use gptq or gptq_v2"),
        ({"is_marlin_format": True}, keep, "checkpoint_format='marlin' is not served"),
        ({"pack_dtype": "int16"}, keep, "pack_dtype='int16' is not served; use int32"),
        ({"adapter": {"name": "lora"}}, keep, "adapter is not served"),
        ({"dynamic": ["+:.*"]}, keep, r"dynamic=\['\+:\.\*'\] is not an object"),
        ({"dynamic": {"+:(a+)+": {}}}, keep, "repeats a repetition"),
        ({"dynamic": {r"-:.*\.layers\.0": {}}}, keep, "down_proj.weight is quantized, but quantization_config leaves"),
        ({"dynamic": {r"+:.*\.layers\.0": {"bits": 8}}}, keep, r"layers\.0\..*scales has shape \[4, 32\]"),
        ({"dynamic": {r"+:.*\.layers\.0": 8}}, keep, "is not an object; quantize the model again"),
        ({"desc_act": True}, drop("g_idx"), "g_idx is missing beside it"),
        ({"desc_act": True, "group_size": 24}, keep, "scales has shape|group_size=24 does not divide its 32 inputs"),
        ({}, drop("qzeros"), "qzeros is missing beside it"),
        ({}, drop("scales"), "scales is missing beside it"),
        ({}, halve("qzeros"), r"qzeros has shape \[2, 4\].* needs \[4, 4\]"),
        ({}, halve("g_idx"), r"g_idx has shape \[32\].* needs \[64\]"),
        ({"quant_method": "awq"}, keep, r"scales has shape \[4, 32\].* needs \[1, 256\]"),
        ({"quant_method": "awq", "version": "gemv_fast"}, keep, "version='gemv_fast' is not served; use gemm or gemv"),
        ({"quant_method": "fp8"}, keep, "qweight is not of this quant_method"),
        ({"quant_method": "AWQ"}, keep, r"scales has shape"),
        ({"quant_method": "exl2"}, keep, "quant_method='exl2' is not served; give a checkpoint of compressed-tensors"),
    ],
)
def test_gptq_that_does_not_fit_is_refused_from_its_headers(
    source: Path,
    tmp_path: Path,
    section: dict[str, object],
    change: Callable[[dict[str, Tensor]], None],
    message: str,
) -> None:
    directory = pack_gptq(source, tmp_path / "packed")
    set_section(directory, **section)
    state = load_file(str(directory / "model.safetensors"))
    change(state)
    save_file(state, str(directory / "model.safetensors"))
    with pytest.raises(ConfigError, match=message):
        read_model_spec(directory)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"dynamic": {r"+:.*\.layers\.0\..*": {"bits": 8}}}, "down_proj.weight: scales has shape [4, 32]"),
        ({"desc_act": True}, "parallel.tensor=2 cannot cut source="),
        ({}, None),
    ],
)
def test_validate_refuses_what_loading_refuses(
    source: Path, tmp_path: Path, section: dict[str, object], message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = pack_gptq(source, tmp_path / "packed")
    set_section(directory, **section)
    model = f"{{name: m, source: {directory}, dtype: float32, parallel: {{tensor: 2}}}}"
    lines = (
        "http_options: {host: 127.0.0.1, port: 8000}",
        "applications:",
        "  - {name: gateway, route_prefix: /, import_path: serve_app.app:build_gateway, args: {}}",
        f"  - {{name: m, route_prefix: null, import_path: serve_app.app:build_model, args: {model}}}",
    )
    (tmp_path / "serve.yaml").write_text("\n".join(lines))
    assert main(["validate", str(tmp_path / "serve.yaml")]) == (1 if message else 0)
    assert (message or "") in capsys.readouterr().err


TENSOR = {"strategy": "tensor"}
STATIC = INPUTS | {"strategy": "tensor", "dynamic": False}


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (compressed(TENSOR, STATIC), drop("input_scale"), "input_scale is missing beside it"),
        (compressed(TENSOR, STATIC), drop("weight_scale"), "weight_scale is missing beside it"),
        (compressed(TENSOR, None), drop("_scale"), "is stored as F8_E4M3 .* how it is quantized"),
        (compressed({"strategy": "channel"}, None) | {"format": "nvfp4"}, keep, "format='nvfp4' is not served"),
        (
            compressed({"strategy": "block", "block_structure": [8, 8]}, None),
            keep,
            r"weight_scale has shape \[\] .* needs \[4, 8\]",
        ),
        (compressed({"strategy": "block", "block_structure": 8}, None), keep, "block_structure=8 is not a pair"),
        (compressed({"strategy": "block", "type": "int"}, None), keep, "strategy='block' of weights is not served"),
        (
            compressed(TENSOR, INPUTS | {"strategy": "group", "group_size": 16}),
            keep,
            "input_activations is not served",
        ),
        (
            compressed(TENSOR, INPUTS | {"strategy": "token", "type": "int"}),
            keep,
            "input_activations is not served",
        ),
        (
            compressed(TENSOR, INPUTS | {"strategy": "token", "dynamic": "local"}),
            keep,
            "input_activations is not",
        ),
        (
            compressed(TENSOR, None, sparsity_config={"format": "sparse-24-bitmask"}),
            keep,
            "sparsity_config.format='sparse-24-bitmask' is not served; save the model with dense weights",
        ),
        ({"quant_method": "fp8", "activation_scheme": "static"}, drop("input_scale"), "input_scale is missing"),
        ({"quant_method": "fp8", "activation_scheme": "other"}, keep, "activation_scheme='other' is not served"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, keep, "fmt='e5m2' is not served"),
        ({"quant_method": "fp8", "weight_block_size": [0, 1]}, keep, r"weight_block_size=\[0, 1\] is not a pair"),
        ({"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8}}, keep, "kv_cache_scheme is not served"),
    ],
)
def test_float8_that_does_not_fit_is_refused_from_its_headers(
    source: Path,
    tmp_path: Path,
    section: dict[str, object],
    change: Callable[[dict[str, Tensor]], None],
    message: str,
) -> None:
    directory = pack_float8(source, tmp_path / "packed", section, is_static=True)
    state = load_file(str(directory / "model.safetensors"))
    change(state)
    save_file(state, str(directory / "model.safetensors"))
    with pytest.raises(ConfigError, match=message):
        read_model_spec(directory)
