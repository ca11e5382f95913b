"""llama.cpp on a llama of ours: its weights written as GGUF, its engine measured by its own batched-bench, its server.

Needs `llama-batched-bench` on the PATH (a build of llama.cpp) and the package gguf; whoever has neither goes without,
and so does the server where there is no `llama-server`.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoConfig

from bench.serving import free_port, running

PROGRAM = "llama-batched-bench"
SERVER = "llama-server"
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


def has_server() -> bool:
    """Whether its server is there too."""
    return shutil.which(SERVER) is not None


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """Of sequences that all begin at once."""

    prompt_s: float  # until the prompts of all are computed
    decode_s: float  # for all tokens after that


def write_gguf(directory: Path, target: Path, kind: str = "q8_0") -> Path:
    """The llama in `directory`, with its vocabulary if that is a BPE of bytes (https://github.com/ggml-org/ggml, gguf).

    kind: of its matrices: q8_0, bf16 or f32.
    """
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
    _add_vocabulary(writer, directory, config.vocab_size)
    file_types = {"q8_0": "MOSTLY_Q8_0", "bf16": "MOSTLY_BF16", "f32": "ALL_F32"}
    writer.add_file_type(gguf.LlamaFileType[file_types[kind]])
    matrix_type = gguf.GGMLQuantizationType[kind.upper()]
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for path in sorted(directory.glob("*.safetensors")):
        for name, tensor in load_file(str(path)).items():
            new_name = _gguf_name(name)
            numbers = tensor.to(torch.float32).numpy()
            module = new_name.split(".")[-2]
            if module in heads:
                numbers = _interleaved(numbers, heads[module])
            if numbers.ndim == 1:
                writer.add_tensor(new_name, numbers)
                continue
            writer.add_tensor(new_name, gguf.quants.quantize(numbers, matrix_type), raw_dtype=matrix_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def ms_per_step(model: Path, batch_size: int, prompt_tokens: int, num_tokens: int, threads: int) -> float:
    """What one more token of each sequence costs."""
    return 1000 * batch_times(model, batch_size, prompt_tokens, num_tokens, threads).decode_s / num_tokens


def batch_times(model: Path, batch_size: int, prompt_tokens: int, num_tokens: int, threads: int) -> BatchTimes:
    """What sequences that begin at once take."""
    context = max(4096, batch_size * (prompt_tokens + num_tokens))
    options = {"-m": model, "-c": context, "-npp": prompt_tokens, "-ntg": num_tokens, "-npl": batch_size, "-t": threads}
    command = [PROGRAM, *(str(part) for pair in options.items() for part in pair), "--output-format", "jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(rows) != 1:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return BatchTimes(float(rows[0]["t_pp"]), float(rows[0]["t_tg"]))


@contextmanager
def serving(model: Path, num_slots: int, slot_tokens: int, threads: int) -> Iterator[str]:
    """Its server with as many sequences at once, and nothing kept of prompts: its URL. Raises ServeFailedError."""
    port, program = free_port(), shutil.which(SERVER)
    assert program is not None
    options = {
        "--model": model,
        "--host": "127.0.0.1",
        "--port": port,
        "--parallel": num_slots,
        "--ctx-size": num_slots * slot_tokens,
        "--threads": threads,
        "--cache-ram": 0,
    }
    words = [str(part) for pair in options.items() for part in pair]
    with running([program, *words, "--no-cache-prompt", "--no-ui"], port, {}) as served:
        yield served.url


def _add_vocabulary(writer: Any, directory: Path, vocab_size: int) -> None:
    path = directory / "tokenizer.json"
    model = json.loads(path.read_text())["model"] if path.is_file() else {}
    if model.get("type") != "BPE":
        writer.add_tokenizer_model("no_vocab")  # which its server refuses
        return
    numbered = {number: token for token, number in model["vocab"].items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([numbered.get(number, f"[unused{number}]") for number in range(vocab_size)])
    writer.add_token_types([1 if number in numbered else 5 for number in range(vocab_size)])  # normal, unused
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in model["merges"]])


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
