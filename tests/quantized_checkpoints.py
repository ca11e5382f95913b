"""Checkpoints in the formats of other tools, packed by loops that say what they do, and their dequantized twins."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve_app.architectures.tensor_names import layer_of
from tests.checkpoints import make_checkpoint
from tests.fakes import save_model_dir

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which column each nibble holds, from the lowest
GROUP = 16
_LAST_OF_LAYER = ("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight", "c_proj.weight")


def make_model(name: str, directory: Path, **changes: Any) -> Path:
    """A random checkpoint with a tokenizer, its vocabulary as large as that.

    Attention is not sharp, and layers add little to what goes through them, as in trained models: small errors stay so.
    """
    make_checkpoint(name, directory, vocab_size=320, **changes)
    for path in directory.glob("*.safetensors"):
        state = load_file(str(path))
        for key, tensor in state.items():
            if tensor.dim() == 2 and layer_of(key) is not None:
                state[key] = tensor * (0.2 if key.endswith(_LAST_OF_LAYER) else 0.4)
        save_file(state, str(path), metadata={"format": "pt"})
    return save_model_dir(directory)


def linear_names(directory: Path) -> list[str]:
    """Weights of the layers' linear modules."""
    state = load_file(str(directory / "model.safetensors"))
    return [name for name, tensor in state.items() if ".layers." in name and tensor.dim() == 2]


def pack_gptq(directory: Path, target: Path, *, has_order: bool) -> Path:
    """A GPTQ checkpoint (v1), and `target/dense`, what it stands for."""
    generator = torch.Generator().manual_seed(7)
    state = load_file(str(directory / "model.safetensors"))
    dense, packed = dict(state), dict(state)
    for name in linear_names(directory):
        num_rows, num_columns = state[name].shape
        num_groups = num_columns // GROUP
        groups = torch.arange(num_columns) // GROUP
        if has_order:
            groups = groups[torch.randperm(num_columns, generator=generator)]
        numbers = torch.randint(0, 16, (num_columns, num_rows), generator=generator)
        zeros = torch.randint(1, 16, (num_groups, num_rows), generator=generator)
        scales = (torch.rand(num_groups, num_rows, generator=generator) * 0.05 + 0.01).to(torch.float16)
        module = packed.pop(name) is not None and name.removesuffix("weight")
        packed[f"{module}qweight"] = _words(numbers.t(), range(8)).t().contiguous()
        packed[f"{module}qzeros"] = _words(zeros - 1, range(8))
        packed[f"{module}scales"] = scales
        packed[f"{module}g_idx"] = groups.to(torch.int32)
        dense[name] = ((numbers - zeros[groups]) * scales.float()[groups]).t().contiguous()
    section = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": has_order, "sym": False}
    return _save(directory, target, packed, dense, section)


def pack_awq(directory: Path, target: Path) -> Path:
    """An AWQ checkpoint (GEMM), and `target/dense`, what it stands for."""
    generator = torch.Generator().manual_seed(8)
    state = load_file(str(directory / "model.safetensors"))
    dense, packed = dict(state), dict(state)
    for name in linear_names(directory):
        num_rows, num_columns = state[name].shape
        groups = torch.arange(num_columns) // GROUP
        numbers = torch.randint(0, 16, (num_columns, num_rows), generator=generator)
        zeros = torch.randint(0, 16, (num_columns // GROUP, num_rows), generator=generator)
        scales = (torch.rand(num_columns // GROUP, num_rows, generator=generator) * 0.05 + 0.01).to(torch.float16)
        module = packed.pop(name) is not None and name.removesuffix("weight")
        packed[f"{module}qweight"] = _words(numbers, AWQ_ORDER)
        packed[f"{module}qzeros"] = _words(zeros, AWQ_ORDER)
        packed[f"{module}scales"] = scales
        dense[name] = ((numbers - zeros[groups]) * scales.float()[groups]).t().contiguous()
    section = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return _save(directory, target, packed, dense, section)


def _words(numbers: Tensor, order: range | tuple[int, ...]) -> Tensor:
    """numbers [R, C] of 4 bits -> [R, C / 8] int32: nibble k of a word holds column order[k] of its eight."""
    words = torch.zeros(numbers.shape[0], numbers.shape[1] // 8, dtype=torch.int64)
    for place, column in enumerate(order):
        words |= numbers[:, column::8].to(torch.int64) << 4 * place
    return words.to(torch.int32)


def _save(
    source: Path, target: Path, packed: dict[str, Tensor], dense: dict[str, Tensor], section: dict[str, object]
) -> Path:
    for directory, state in ((target, packed), (target / "dense", dense)):
        directory.mkdir(parents=True)
        for path in source.glob("*.json"):
            shutil.copy(path, directory / path.name)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(directory / "model.safetensors"))
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": section}))
    return target
