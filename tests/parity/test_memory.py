"""A shard holds its own part of the model, and never much more while it loads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from serve_app.engine.plain_processes import PlainProcesses
from tests.checkpoints import make_checkpoint
from tests.plain_driver import Split, load_group

MODEL_BYTES = 400_000_000
HIDDEN_SIZE, INTERMEDIATE_SIZE, NUM_LAYERS, KV_SIZE, VOCAB_SIZE = 1024, 2816, 12, 256, 32_000


@pytest.fixture(scope="module")
def big_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of 400 MB in bf16, in four files."""
    directory = tmp_path_factory.mktemp("big")
    LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        dtype=torch.bfloat16,
    ).save_pretrained(directory)
    files = [{"model.embed_tokens.weight": _random(VOCAB_SIZE, HIDDEN_SIZE)}, {}, {}]
    for layer in range(NUM_LAYERS):
        files[1 + layer * 2 // NUM_LAYERS] |= _layer(layer)
    files.append({"model.norm.weight": _random(HIDDEN_SIZE), "lm_head.weight": _random(VOCAB_SIZE, HIDDEN_SIZE)})
    weight_map: dict[str, str] = {}
    for index, tensors in enumerate(files):
        name = f"model-{index + 1:05}-of-{len(files):05}.safetensors"
        save_file(tensors, directory / name)
        weight_map |= dict.fromkeys(tensors, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.mark.parametrize("split", [Split(2, 2), Split(1, 2), Split(2, 1)], ids=str)
def test_shards_hold_and_touch_little_more_than_their_own_tensors(
    big_checkpoint: Path, tmp_path: Path, split: Split
) -> None:
    files = list(big_checkpoint.glob("*.safetensors"))
    model_bytes = sum(file.stat().st_size for file in files)
    assert len(files) >= 3
    assert model_bytes >= MODEL_BYTES
    pool = PlainProcesses(split.num_shards)  # new ones: a heap that held a model before is not a measure
    try:
        load_group(pool, make_checkpoint("llama", tmp_path), split)  # next to nothing, but all modules are imported
        pids = [process.pid for process in pool.processes]
        empty_bytes = [_memory_bytes(pid, "VmRSS") for pid in pids]
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): the peak begins anew
        reports = load_group(pool, big_checkpoint, split, dtype="auto")
        peaks = [_memory_bytes(pid, "VmHWM") - empty for pid, empty in zip(pids, empty_bytes, strict=True)]
    finally:
        pool.kill()
    ratios = [peak / report.parameter_bytes for peak, report in zip(peaks, reports, strict=True)]
    held_ratio = sum(report.parameter_bytes for report in reports) / model_bytes
    print(f"{split}: held / model {held_ratio:.4f}, peak / own", *(f"{ratio:.3f}" for ratio in ratios))
    assert held_ratio <= 1.02
    assert max(ratios) <= 1.15
    assert min(ratios) >= 0.95, "the tensors were not in memory when this was measured"


def _layer(index: int) -> dict[str, Tensor]:
    sizes = {
        "self_attn.q_proj": (HIDDEN_SIZE, HIDDEN_SIZE),
        "self_attn.k_proj": (KV_SIZE, HIDDEN_SIZE),
        "self_attn.v_proj": (KV_SIZE, HIDDEN_SIZE),
        "self_attn.o_proj": (HIDDEN_SIZE, HIDDEN_SIZE),
        "mlp.gate_proj": (INTERMEDIATE_SIZE, HIDDEN_SIZE),
        "mlp.up_proj": (INTERMEDIATE_SIZE, HIDDEN_SIZE),
        "mlp.down_proj": (HIDDEN_SIZE, INTERMEDIATE_SIZE),
        "input_layernorm": (HIDDEN_SIZE,),
        "post_attention_layernorm": (HIDDEN_SIZE,),
    }
    return {f"model.layers.{index}.{name}.weight": _random(*shape) for name, shape in sizes.items()}


def _random(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.05, 0.05)


def _memory_bytes(pid: int | None, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
