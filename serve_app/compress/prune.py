"""Structured pruning: whole layers, heads and MLP channels go, and what is left is a smaller dense model.

Layer by layer, and tensor by tensor, however large the model is.

Unstructured and 2:4 masks save nothing where models are served, so they are not here (docs/compress.md).
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from serve_app.architectures.lookup import GENERATORS
from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.checkpoints.quality_gate import sha256_of
from serve_app.compress.artifact import WeightWriter, copy_text_files, new_directory, write_json
from serve_app.compress.importance import Importance, measure_importance
from serve_app.compress.quantize import HEAD_WEIGHT, read_quantizable
from serve_app.compress.recipe import write_recipe
from serve_app.compress.texts import read_texts, sequences_of
from serve_app.engine.tensor_file import tensor_reader
from serve_app.errors import ConfigError
from serve_app.models.torch_dtypes import TORCH_DTYPES
from serve_app.models.transformers_model import read_config
from serve_app.preprocessing.tokenizer import Tokenizer

_PRUNABLE = [name for name, one in GENERATORS.items() if one.fused.layer is not None]  # whose parts have llama's names
_MAX_TOKENS = 512
_LAYER = re.compile(r"^((?:model\.)?)layers\.(\d+)\.(.+)$")


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """What is left; None: all of it."""

    num_layers: int | None = None
    num_kv_heads: int | None = None
    intermediate_size: int | None = None
    num_samples: int = 64


def prune(
    source: Path, target: Path, settings: PruneSettings, calibration: Path, *, can_replace: bool = False
) -> list[int]:
    """Write a smaller copy of `source`; gives the layers that were kept. Raises ConfigError."""
    spec = read_quantizable(source)
    _check(spec, settings, source)
    sequences = list(sequences_of(read_texts(calibration), Tokenizer.load(source), _MAX_TOKENS))[: settings.num_samples]
    importance = measure_importance(source, spec.num_layers, sequences)
    layers = _most(importance.layers, settings.num_layers)
    with new_directory(target, can_replace=can_replace, needed_bytes=spec.num_bytes) as staging:
        _write_pruned(staging, spec, importance, settings, layers)
        write_json(
            staging / "config.json", _pruned_config(read_config(source).to_dict(), spec.head_dim, settings, layers)
        )
        copy_text_files(source, staging)
        done = {**asdict(settings), "kept_layers": layers, "calibration_sha256": sha256_of(calibration)}
        write_recipe(staging, source, "prune", done)
    return layers


def _check(spec: ModelSpec, settings: PruneSettings, source: Path) -> None:
    if spec.model_type not in _PRUNABLE:
        raise ConfigError(
            f"{source}: model_type={spec.model_type} cannot be pruned yet; supported: {', '.join(_PRUNABLE)}"
        )
    if settings.num_layers is settings.num_kv_heads is settings.intermediate_size is None:
        raise ConfigError("nothing is to be pruned; give --layers, --kv-heads or --intermediate-size")
    assert spec.intermediate_size is not None
    for option, wanted, there in (
        ("--layers", settings.num_layers, spec.num_layers),
        ("--kv-heads", settings.num_kv_heads, spec.num_kv_heads),
        ("--intermediate-size", settings.intermediate_size, spec.intermediate_size),
    ):
        if wanted is not None and not 0 < wanted <= there:
            raise ConfigError(f"{option} {wanted} is outside 1 to {there}, which the model has")


def _most(importance: Tensor, count: int | None) -> list[int]:
    """The most important, in their order."""
    if count is None:
        return list(range(len(importance)))
    return sorted(importance.topk(count).indices.tolist())


def _write_pruned(
    directory: Path, spec: ModelSpec, importance: Importance, settings: PruneSettings, layers: list[int]
) -> None:
    """Read each tensor that stays, cut it, and write it."""
    writer = WeightWriter(directory)
    with tensor_reader() as reader:
        for name, header in tqdm(spec.tensors.items(), desc="prune", unit="tensor", disable=None):
            match = _LAYER.match(name)
            if (spec.is_tied and name == HEAD_WEIGHT) or (match and int(match[2]) not in layers):
                continue
            tensor = torch.empty(header.shape, dtype=TORCH_DTYPES[spec.dtype])
            reader.read(header, tensor, None, ())
            if match is None:
                writer.add(name, tensor)
                continue
            layer, rest = int(match[2]), match[3]
            kept = _kept_rows(rest, spec, importance, settings, layer)
            new_name = f"{match[1]}layers.{layers.index(layer)}.{rest}"
            writer.add(new_name, tensor if kept is None else tensor.index_select(*kept).contiguous())
    writer.close()


def _kept_rows(
    name: str, spec: ModelSpec, importance: Importance, settings: PruneSettings, layer: int
) -> tuple[int, Tensor] | None:
    """The dimension along which a layer's tensor is cut, and what stays; None: all of it."""
    module = name.rpartition(".")[0].rpartition(".")[2]
    if module in ("gate_proj", "up_proj", "down_proj") and settings.intermediate_size is not None:
        channels = torch.tensor(_most(importance.channels[layer], settings.intermediate_size))
        return (1 if module == "down_proj" else 0), channels
    if module in ("q_proj", "k_proj", "v_proj", "o_proj") and settings.num_kv_heads is not None:
        groups = torch.tensor(_most(importance.heads[layer], settings.num_kv_heads))
        width = spec.head_dim * (1 if module in ("k_proj", "v_proj") else spec.num_heads // spec.num_kv_heads)
        rows = (groups[:, None] * width + torch.arange(width)).flatten()
        if name.endswith(".bias") and module == "o_proj":
            return None
        return (1 if module == "o_proj" else 0), rows
    return None


def _pruned_config(config: dict[str, Any], head_dim: int, settings: PruneSettings, layers: list[int]) -> dict[str, Any]:
    changed = dict(config)
    changed["num_hidden_layers"] = len(layers)
    if isinstance(changed.get("layer_types"), list):
        changed["layer_types"] = [changed["layer_types"][layer] for layer in layers]
    if settings.intermediate_size is not None:
        changed["intermediate_size"] = settings.intermediate_size
    if settings.num_kv_heads is not None:
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        changed["head_dim"] = head_dim
        changed["num_attention_heads"] = heads // kv_heads * settings.num_kv_heads
        changed["num_key_value_heads"] = settings.num_kv_heads
    return changed
