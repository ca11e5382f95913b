"""Published models without their weights: config.json as it is, and safetensors files whose headers alone are written.

The rest of each file is a hole, so that a model of 800 GB takes a few megabytes of disk.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_FILE_BYTES = 5 * 10**9
_DTYPE_BYTES = 2  # all are stored in bfloat16

_LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
    "max_position_embeddings": 131_072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128_256,
}


def _llama(hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int) -> dict[str, object]:
    return _LLAMA | {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
    }


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """What its publisher says of it."""

    config: dict[str, object]
    num_billions: float  # parameters, as its card rounds them


PUBLISHED = {
    "llama-3.1-8B": PublishedModel(_llama(4096, 14336, 32, 32), 8.03),
    "llama-3.1-70B": PublishedModel(_llama(8192, 28672, 80, 64), 70.55),
    "llama-3.1-405B": PublishedModel(_llama(16384, 53248, 126, 128), 405.85),
    "mixtral-8x22B": PublishedModel(
        {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_size": 6144,
            "intermediate_size": 16384,
            "max_position_embeddings": 65_536,
            "num_attention_heads": 48,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 56,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1_000_000,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": 32_000,
        },
        140.6,
    ),
    "qwen3-235B": PublishedModel(
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "bos_token_id": 151_643,
            "decoder_sparse_step": 1,
            "eos_token_id": 151_645,
            "head_dim": 128,
            "hidden_size": 4096,
            "intermediate_size": 12_288,
            "max_position_embeddings": 40_960,
            "max_window_layers": 94,
            "mlp_only_layers": [],
            "moe_intermediate_size": 1536,
            "num_attention_heads": 64,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 94,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1_000_000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_sliding_window": False,
            "vocab_size": 151_936,
        },
        235.09,
    ),
}


def write_published(name: str, directory: Path) -> Path:
    """A directory as a download would leave it, but for the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    config = PUBLISHED[name].config
    (directory / "config.json").write_text(json.dumps(config))
    files = _in_files(_tensors(config))
    weight_map: dict[str, str] = {}
    for index, shapes in enumerate(files, start=1):
        file_name = f"model-{index:05d}-of-{len(files):05d}.safetensors"
        write_headers(directory / file_name, shapes)
        weight_map |= dict.fromkeys(shapes, file_name)
    total = sum(_num_bytes(shape) for shapes in files for shape in shapes.values())
    index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index_json))
    return directory


def write_headers(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of bfloat16 tensors, with a hole for their numbers."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _num_bytes(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)


def _num_bytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _DTYPE_BYTES


def _in_files(tensors: Iterator[tuple[str, tuple[int, ...]]]) -> list[dict[str, tuple[int, ...]]]:
    files: list[dict[str, tuple[int, ...]]] = [{}]
    num_bytes = 0
    for name, shape in tensors:
        if num_bytes + _num_bytes(shape) > _FILE_BYTES:
            files.append({})
            num_bytes = 0
        files[-1][name] = shape
        num_bytes += _num_bytes(shape)
    return files


def _tensors(config: dict[str, object]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, vocab = _size(config, "hidden_size"), _size(config, "vocab_size")
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(_size(config, "num_hidden_layers")):
        for name, shape in (*_attention(config), *_mlp(config)):
            yield f"model.layers.{layer}.{name}.weight", shape
        yield f"model.layers.{layer}.input_layernorm.weight", (hidden,)
        yield f"model.layers.{layer}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def _attention(config: dict[str, object]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, num_heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    head_dim = _size(config, "head_dim") if "head_dim" in config else hidden // num_heads
    kv_rows = _size(config, "num_key_value_heads") * head_dim
    yield "self_attn.q_proj", (num_heads * head_dim, hidden)
    yield "self_attn.k_proj", (kv_rows, hidden)
    yield "self_attn.v_proj", (kv_rows, hidden)
    yield "self_attn.o_proj", (hidden, num_heads * head_dim)
    if config["model_type"] == "qwen3_moe":
        yield "self_attn.q_norm", (head_dim,)
        yield "self_attn.k_norm", (head_dim,)


def _mlp(config: dict[str, object]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = _size(config, "hidden_size")
    if config["model_type"] == "llama":
        inner = _size(config, "intermediate_size")
        yield from (("mlp.gate_proj", (inner, hidden)), ("mlp.up_proj", (inner, hidden)))
        yield "mlp.down_proj", (hidden, inner)
        return
    is_mixtral = config["model_type"] == "mixtral"
    owner = "block_sparse_moe" if is_mixtral else "mlp"
    names = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
    num_experts = _size(config, "num_local_experts" if is_mixtral else "num_experts")
    inner = _size(config, "intermediate_size" if is_mixtral else "moe_intermediate_size")
    yield f"{owner}.gate", (num_experts, hidden)
    for expert in range(num_experts):
        for name, shape in zip(names, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True):
            yield f"{owner}.experts.{expert}.{name}", shape


def _size(config: dict[str, object], key: str) -> int:
    value = config[key]
    assert isinstance(value, int)
    return value
