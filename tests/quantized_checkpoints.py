"""Checkpoints in the formats of other tools, packed by loops that say what they do, and their dequantized twins."""

import json
import shutil
from collections.abc import Callable, Mapping
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
WEIGHTS = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
INPUTS = {**WEIGHTS, "dynamic": True}
INPUT_SCALE = 0.02  # of static float8 inputs: up to 9 in size
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


def pack_gptq(
    directory: Path,
    target: Path,
    *,
    has_order: bool = False,
    bits: Callable[[str], int | None] = lambda _name: 4,
    has_groups: bool = True,
    is_v2: bool = False,
    has_head: bool = False,
    group: int = GROUP,
    **section: object,
) -> Path:
    """A GPTQ checkpoint, and `target/dense`, what it stands for.

    bits: of a weight, by its name; None: it stays as it is. has_groups: `g_idx` is stored. `section`: more of
    quantization_config.
    """
    generator = torch.Generator().manual_seed(7)
    state = load_file(str(directory / "model.safetensors"))
    dense, packed = dict(state), dict(state)
    for name in [*linear_names(directory), *(["lm_head.weight"] if has_head else [])]:
        width = bits(name)
        if width is None:
            continue
        num_rows, num_columns = state[name].shape
        size = num_columns if group == -1 else group
        num_groups = -(-num_columns // size)
        groups = torch.arange(num_columns) // size
        if has_order:
            groups = groups[torch.randperm(num_columns, generator=generator)]
        numbers = torch.randint(0, 2**width, (num_columns, num_rows), generator=generator)
        zeros = torch.randint(1, 2**width, (num_groups, num_rows), generator=generator)
        scales = torch.rand(num_groups, num_rows, generator=generator) * 0.05 + 0.01
        scales = (scales * 2 ** (4 - width)).to(torch.float16)
        module = packed.pop(name) is not None and name.removesuffix("weight")
        packed[f"{module}qweight"] = bit_stream(numbers.t(), width).t().contiguous()
        packed[f"{module}qzeros"] = bit_stream(zeros if is_v2 else zeros - 1, width)
        packed[f"{module}scales"] = scales
        if has_groups:
            packed[f"{module}g_idx"] = groups.to(torch.int32)
        dense[name] = ((numbers - zeros[groups]) * scales.float()[groups]).t().contiguous()
    settings = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": has_order, "sym": False, **section}
    return _save(directory, target, packed, dense, settings)


def pack_awq(directory: Path, target: Path, version: str = "gemm") -> Path:
    """An AWQ checkpoint, and `target/dense`, what it stands for."""
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
        if version == "gemm":
            packed[f"{module}qweight"] = _words(numbers, AWQ_ORDER)
            packed[f"{module}qzeros"] = _words(zeros, AWQ_ORDER)
            packed[f"{module}scales"] = scales
        else:  # rows of at least a word, padded
            padded = torch.zeros(num_rows, 8 - len(zeros))
            packed[f"{module}qweight"] = bit_stream(numbers.t(), 4)
            packed[f"{module}qzeros"] = bit_stream(torch.cat([zeros.t(), padded.long()], dim=1), 4)
            packed[f"{module}scales"] = torch.cat([scales.t(), padded.to(scales.dtype)], dim=1)
        dense[name] = ((numbers - zeros[groups]) * scales.float()[groups]).t().contiguous()
    section = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": version}
    return _save(directory, target, packed, dense, section)


def pack_float8(
    directory: Path,
    target: Path,
    section: Mapping[str, object],
    *,
    block: tuple[int, int] | None = None,
    is_static: bool = False,
    names: tuple[str, str] = ("weight_scale", "input_scale"),
) -> Path:
    """A checkpoint of float8 weights, one scale each or one for each block, and `target/dense`, what it stands for."""
    state = load_file(str(directory / "model.safetensors"))
    dense, packed = dict(state), dict(state)
    for name in linear_names(directory):
        module, matrix = name.removesuffix("weight"), state[name]
        rows, columns = block or tuple(matrix.shape)
        steps = torch.zeros(-(-matrix.shape[0] // rows), -(-matrix.shape[1] // columns))
        for row in range(len(steps)):
            for column in range(steps.shape[1]):
                part = matrix[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
                steps[row, column] = part.abs().max() / 448
        whole = steps.repeat_interleave(rows, 0)[: matrix.shape[0]]
        whole = whole.repeat_interleave(columns, 1)[:, : matrix.shape[1]]
        packed[name] = (matrix / whole).to(torch.float8_e4m3fn)
        packed[f"{module}{names[0]}"] = steps if block else steps.view(())
        if is_static:
            packed[f"{module}{names[1]}"] = torch.tensor([INPUT_SCALE])
        dense[name] = packed[name].float() * whole
    return _save(directory, target, packed, dense, section)


def bit_stream(numbers: Tensor, bits: int) -> Tensor:
    """numbers [R, C] -> [R, ceil(C * bits / 32)] int32: one number after the other, from the lowest bit."""
    words = torch.zeros(len(numbers), -(-numbers.shape[1] * bits // 32) + 1, dtype=torch.int64)
    for column in range(numbers.shape[1]):
        word, shift = divmod(column * bits, 32)
        wide = numbers[:, column].to(torch.int64) << shift
        words[:, word] |= wide & 0xFFFFFFFF
        words[:, word + 1] |= wide >> 32
    return words[:, :-1].to(torch.int32)


def loose_words(numbers: Tensor, bits: int) -> Tensor:
    """numbers [R, C] -> [R, words] int32: as many of them in each as it holds whole, from the lowest bit."""
    per_word = 32 // bits
    padded = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % per_word))
    return bit_stream(padded.reshape(-1, per_word), bits).view(len(numbers), -1)


def _words(numbers: Tensor, order: range | tuple[int, ...]) -> Tensor:
    """numbers [R, C] of 4 bits -> [R, C / 8] int32: nibble k of a word holds column order[k] of its eight."""
    words = torch.zeros(numbers.shape[0], numbers.shape[1] // 8, dtype=torch.int64)
    for place, column in enumerate(order):
        words |= numbers[:, column::8].to(torch.int64) << 4 * place
    return words.to(torch.int32)


def _save(
    source: Path, target: Path, packed: dict[str, Tensor], dense: dict[str, Tensor], section: Mapping[str, object]
) -> Path:
    for directory, state in ((target, packed), (target / "dense", dense)):
        directory.mkdir(parents=True)
        for path in source.glob("*.json"):
            shutil.copy(path, directory / path.name)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(directory / "model.safetensors"))
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": dict(section)}))
    return target


def set_section(directory: Path, **changes: object) -> None:
    """Change keys of a checkpoint's quantization_config."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


def compressed(weights: Mapping[str, object], inputs: Mapping[str, object] | None, **more: object) -> dict[str, object]:
    """quantization_config of compressed-tensors for 8-bit floats."""
    group = {"targets": ["Linear"], "weights": {**WEIGHTS, **weights}, "input_activations": inputs}
    layout = {"format": "float-quantized", "quantization_status": "compressed", "ignore": ["lm_head"]}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, **layout, **more}
