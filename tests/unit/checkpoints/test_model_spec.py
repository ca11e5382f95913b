"""Reading a checkpoint's sizes from config.json and safetensors headers."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import CONFIG_MAPPING

from serve_app.architectures.decoders import DECODERS
from serve_app.architectures.lookup import GENERATORS
from serve_app.architectures.tensor_names import layer_of
from serve_app.checkpoints.model_spec import ModelSpec, read_model_spec
from serve_app.checkpoints.rank_sizes import tensor_problems
from serve_app.errors import ConfigError

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "vocab_size": 64,
    "dtype": "float32",
}
TENSORS = {
    "model.embed_tokens.weight": np.arange(1024, dtype=np.float32).reshape(64, 16),
    "model.layers.0.self_attn.q_proj.weight": np.zeros((16, 16), np.float32),
    "model.layers.1.self_attn.q_proj.weight": np.zeros((16, 16), np.float32),
    "model.norm.weight": np.zeros((16,), np.float32),
    "lm_head.weight": np.zeros((64, 16), np.float32),
}


def checkpoint(directory: Path, config: dict[str, object], names: tuple[str, ...] = tuple(TENSORS)) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    save_file({name: TENSORS[name] for name in names}, directory / "model.safetensors")
    return directory


def spec_of(directory: Path, **changes: object) -> ModelSpec:
    return read_model_spec(checkpoint(directory, LLAMA | changes))


def test_a_checkpoint_gives_its_sizes_and_tensors(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert (spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim) == (2, 4, 2, 4)
    assert (spec.hidden_size, spec.intermediate_size, spec.vocab_size) == (16, 32, 64)
    assert (spec.max_position_embeddings, spec.dtype, spec.is_tied) == (2048, "float32", False)
    assert spec.architectures == ("LlamaForCausalLM",)
    header = spec.tensors["model.embed_tokens.weight"]
    assert (header.file.name, header.dtype, header.shape, header.num_bytes) == (
        "model.safetensors",
        "F32",
        (64, 16),
        4096,
    )
    content = header.file.read_bytes()
    assert (
        content[header.offset_bytes : header.offset_bytes + header.num_bytes]
        == TENSORS["model.embed_tokens.weight"].tobytes()
    )
    assert spec.num_bytes == sum(tensor.nbytes for tensor in TENSORS.values())


@pytest.mark.parametrize("model_type", sorted(DECODERS))
def test_missing_keys_mean_what_the_config_class_of_transformers_means(tmp_path: Path, model_type: str) -> None:
    ours = GENERATORS[model_type]
    given = {ours.keys.window_switch: True} if ours.keys.window_switch else {}
    theirs = CONFIG_MAPPING[model_type](**given)
    text = theirs
    names = [f"model.layers.{layer}.x" for layer in range(ours.sizes.num_layers)] + ["lm_head.weight"]
    save_file({name: np.zeros(1, np.float32) for name in names}, tmp_path / "model.safetensors")
    config = {"model_type": model_type} | given
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = read_model_spec(tmp_path)
    assert spec.num_layers == text.num_hidden_layers
    assert spec.num_heads == text.num_attention_heads
    assert spec.num_kv_heads == (getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    assert spec.head_dim == (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    assert spec.hidden_size == text.hidden_size
    size = getattr(text, "intermediate_size", None) or getattr(text, "ffn_dim", None) or 4 * text.hidden_size
    assert spec.intermediate_size == size
    assert spec.vocab_size == text.vocab_size
    assert spec.max_position_embeddings == text.max_position_embeddings
    assert spec.is_tied == theirs.tie_word_embeddings
    assert spec.sliding_window == getattr(text, "sliding_window", None)
    assert spec.num_experts == getattr(text, "num_local_experts", None)


def test_the_keys_of_gpt2_and_opt_are_understood(tmp_path: Path) -> None:
    gpt2: dict[str, object] = {
        "model_type": "gpt2",
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 32,
        "n_positions": 77,
        "n_inner": None,
    }
    spec = read_model_spec(checkpoint(tmp_path, gpt2))
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.intermediate_size) == (4, 4, 8, 128)
    assert (spec.max_position_embeddings, spec.is_tied) == (77, True)
    opt: dict[str, object] = {
        "model_type": "opt",
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "ffn_dim": 40,
    }
    assert read_model_spec(checkpoint(tmp_path, opt)).intermediate_size == 40


def test_ranks_have_to_divide_the_heads_of_each_layer_where_layers_differ(tmp_path: Path) -> None:
    laguna: dict[str, object] = {
        "model_type": "laguna",
        "num_hidden_layers": 2,
        "num_attention_heads": 48,
        "num_attention_heads_per_layer": [48, 72],
        "num_key_value_heads": 8,
    }
    spec = read_model_spec(checkpoint(tmp_path, laguna))
    assert tensor_problems(spec, 8) == []
    assert tensor_problems(spec, 16) == ["parallel.tensor=16 does not divide heads of each layer=24; use 1, 2, 4 or 8"]


def test_dtype_comes_from_either_key_or_else_from_the_tensors(tmp_path: Path) -> None:
    assert spec_of(tmp_path, dtype="bfloat16").dtype == "bfloat16"
    assert spec_of(tmp_path, dtype=None, torch_dtype="torch.float16").dtype == "float16"
    assert spec_of(tmp_path, dtype=None).dtype == "float32"


def test_some_ropes_lengthen_the_model(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    assert spec_of(tmp_path, rope_scaling=yarn).max_position_embeddings == 8192
    assert spec_of(tmp_path, rope_parameters=yarn | {"rope_type": "llama3"}).max_position_embeddings == 2048


def test_ropes_whose_frequencies_depend_on_the_length_are_served_to_the_original_one(tmp_path: Path) -> None:
    assert spec_of(tmp_path).unstretched_positions is None
    dynamic = spec_of(tmp_path, rope_scaling={"type": "dynamic", "factor": 4.0})
    assert dynamic.unstretched_positions == dynamic.default_max_tokens == 2048
    assert dynamic.max_position_embeddings == 8192


def test_a_quantized_checkpoint_names_its_method(tmp_path: Path) -> None:
    section = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    found = spec_of(tmp_path, quantization_config=section).quantization
    assert found is not None
    assert found.method == "gptq"
    assert spec_of(tmp_path).quantization is None


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source=.*none is not a directory; give one with config.json and"):
        read_model_spec(tmp_path / "none")


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, LLAMA)
    (tmp_path / "adapter_config.json").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"source=.*is an adapter \(LoRA\); merge it into its base model"):
        read_model_spec(tmp_path)


def test_a_directory_without_config_is_named(tmp_path: Path) -> None:
    checkpoint(tmp_path, LLAMA)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config.json; give a directory in Hugging Face's layout"):
        read_model_spec(tmp_path)


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a": 1, "a": 2}', b'{"a": ' + b"9" * 5000])
def test_a_broken_config_is_named(tmp_path: Path, text: bytes) -> None:
    checkpoint(tmp_path, LLAMA)
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(
        ConfigError, match=r"config.json has .*JSON.*: it is damaged or incomplete; download or copy it"
    ):
        read_model_spec(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"model_type": "bert"},
            "model_type='bert' in config.json is not supported: it does not generate; set task: embed, classify or",
        ),
        (
            {"model_type": None},
            "model_type=None in config.json is not supported: no class of transformers'",
        ),
        ({"num_hidden_layers": "2"}, "num_hidden_layers='2' is not a positive integer"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 is not a positive integer"),
        ({"vocab_size": True}, "vocab_size=True is not a positive integer"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1 is neither true nor false; write one of them"),
        ({"num_hidden_layers": 4}, "has 4 layers, but no tensors are there for layers 2, 3; download the model again"),
        ({"model_type": "gemma3"}, "model_type='gemma3' in config.json is not supported"),
    ],
)
def test_a_wrong_config_value_is_named(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        spec_of(tmp_path, **changes)


def test_an_untied_model_needs_a_head(tmp_path: Path) -> None:
    checkpoint(tmp_path, LLAMA, tuple(name for name in TENSORS if name != "lm_head.weight"))
    with pytest.raises(ConfigError, match="tie_word_embeddings=false but there is no lm_head tensor; give a model for"):
        read_model_spec(tmp_path)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.up_proj.weight", 3),
        ("h.11.attn.c_attn.bias", 11),
        ("transformer.h.0.ln_1.weight", 0),
        ("model.decoder.layers.2.fc1.weight", 2),
        ("language_model.model.layers.4.mlp.up_proj.weight", 4),
        ("model.layers.1.block_sparse_moe.experts.7.w1.weight", 1),
        ("vision_tower.vision_model.encoder.layers.2.fc1.weight", None),
        ("h.0.attn.bias", None),
        ("model.norm.weight", None),
    ],
)
def test_the_layer_of_a_tensor_is_in_its_name(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer
