"""llama.cpp on a llama of ours: its weights written as GGUF in q8_0, and decoding measured by its own batched-bench.

Needs `llama-batched-bench` on the PATH (a build of llama.cpp) and the package gguf; whoever has neither goes without.
"""

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoConfig

PROGRAM = "llama-batched-bench"
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def is_installed() -> bool:
    """Whether there is what this needs."""
    return shutil.which(PROGRAM) is not None and find_spec("gguf") is not None


def write_gguf(directory: Path, target: Path) -> Path:
    """The llama in `directory`, its matrices in q8_0, without a vocabulary (https://github.com/ggml-org/ggml, gguf)."""
    import gguf

    config = AutoConfig.from_pretrained(str(directory), local_files_only=True)
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for path in sorted(directory.glob("*.safetensors")):
        for name, tensor in load_file(str(path)).items():
            new_name = _gguf_name(name)
            numbers = tensor.to(torch.float32).numpy()
            kind = new_name.split(".")[-2]
            if kind in heads:
                numbers = _interleaved(numbers, heads[kind])
            if numbers.ndim == 1:
                writer.add_tensor(new_name, numbers)
                continue
            kept = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(new_name, kept, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def ms_per_step(model: Path, batch_size: int, prompt_tokens: int, num_tokens: int, threads: int) -> float:
    """What one more token of each sequence costs."""
    options = {"-m": model, "-c": 4096, "-npp": prompt_tokens, "-ntg": num_tokens, "-npl": batch_size, "-t": threads}
    command = [PROGRAM, *(str(part) for pair in options.items() for part in pair), "--output-format", "jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(rows) != 1:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return 1000 * float(rows[0]["t_tg"]) / num_tokens


def _gguf_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    if module in _OUTER_NAMES:
        return f"{_OUTER_NAMES[module]}.{leaf}"
    layer, _, inner = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_NAMES[inner]}.{leaf}"


def _interleaved(matrix: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """Rotary positions in halves -> in pairs, as llama.cpp turns a llama's: rows [H, 2, Dh / 2] -> [H, Dh / 2, 2]."""
    num_rows, num_columns = matrix.shape
    halves = matrix.reshape(num_heads, 2, num_rows // num_heads // 2, num_columns)
    return halves.swapaxes(1, 2).reshape(num_rows, num_columns).copy()
