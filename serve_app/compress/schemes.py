"""The schemes of `rayshard compress quantize`, and how compressed-tensors writes them.

https://github.com/vllm-project/compressed-tensors (`QuantizationConfig`, format version of 0.10 and later)
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from serve_app.errors import ConfigError
from serve_app.models.quantized_weight import QuantizedWeight, quantize_weight, round_to
from serve_app.types.shards import WeightScheme

SCHEMES = {
    "int8": WeightScheme(8, has_quantized_inputs=True),
    "int8_weight_only": WeightScheme(8),
    "int4": WeightScheme(4, group_size=32),
    "int3": WeightScheme(3, group_size=32),
    "fp8": WeightScheme(8, is_float=True, has_quantized_inputs=True),
    "power_of_two": WeightScheme(8),  # the textbook's Q(w) = round(w * 2^s) / 2^s, an s for each output
}
EMBEDDING_SCHEME = WeightScheme(8)
_INT32_BITS = 32


@dataclass(frozen=True, slots=True)
class Encoded:
    """A quantized weight as it is written: tensors by what follows the module's name."""

    tensors: dict[str, Tensor]


def scheme_of(name: str, group_size: int | None) -> WeightScheme:
    """A scheme by its name. Raises ConfigError."""
    scheme = SCHEMES[name]
    if group_size is None:
        return scheme
    if scheme.group_size is None:
        raise ConfigError(f"--group-size {group_size} has no effect on --scheme {name}; leave it out")
    return replace(scheme, group_size=group_size)


def encode(
    matrix: Tensor, name: str, scheme: WeightScheme, dtype: torch.dtype, *, is_embedding: bool = False
) -> Encoded:
    """The nearest numbers to a matrix [N, K], their scales of the model's dtype, as compressed-tensors keeps them."""
    weight = nearest_numbers(matrix, name, scheme, dtype)
    scales = weight.scales.to(dtype)
    if layout_of(scheme, is_embedding=is_embedding) != "pack-quantized":
        return Encoded({"weight": weight.values, "weight_scale": scales})
    shape = torch.tensor(weight.values.shape, dtype=torch.int64)
    return Encoded({"weight_packed": pack(weight.values, scheme.bits), "weight_scale": scales, "weight_shape": shape})


def nearest_numbers(matrix: Tensor, name: str, scheme: WeightScheme, dtype: torch.dtype) -> QuantizedWeight:
    """The nearest to a matrix [N, K] under the scales as they are stored: rounded to the dtype, or to powers of two."""
    found = quantize_weight(matrix, scheme)
    scales = found.scales
    if name == "power_of_two":
        scales = torch.exp2(torch.ceil(torch.log2(scales)))
    scales = scales.to(dtype).to(torch.float32).clamp_(min=torch.finfo(dtype).tiny)
    grouped = matrix.to(torch.float32).view(len(matrix), scales.shape[1], -1)
    return QuantizedWeight(round_to(grouped, scales, scheme).view(matrix.shape), scales, scheme.bits)


def pack(values: Tensor, bits: int) -> Tensor:
    """values [N, K] int8 -> [N, ceil(K * bits / 32)] int32: one stream of bits a row, shifted to begin at zero."""
    num_rows, num_columns = values.shape
    num_words = -(-num_columns * bits // _INT32_BITS)
    firsts = torch.arange(num_columns) * bits
    shifted = (values.to(torch.int64) + 2 ** (bits - 1)) << firsts % _INT32_BITS
    words = torch.zeros(num_rows, num_words + 1, dtype=torch.int64)
    words.index_add_(1, firsts // _INT32_BITS, shifted & 0xFFFFFFFF)
    words.index_add_(1, firsts // _INT32_BITS + 1, shifted >> _INT32_BITS)  # what crosses into the next word
    return words[:, :num_words].to(torch.int32)  # wraps as int32 does


def quantization_config(scheme: WeightScheme, *, has_embedding: bool, ignored: list[str]) -> dict[str, Any]:
    """`quantization_config` of config.json; embeddings are kept in int8, which is all that transformers reads there."""
    layout = layout_of(scheme)
    groups = {"group_0": _group(["Linear"], scheme, layout)}
    if has_embedding:
        groups["group_1"] = _group(["Embedding"], EMBEDDING_SCHEME, layout_of(EMBEDDING_SCHEME, is_embedding=True))
    layouts = {group["format"] for group in groups.values()}
    return {
        "config_groups": groups,
        "format": layout if len(layouts) == 1 else "mixed-precision",
        "ignore": ignored,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def layout_of(scheme: WeightScheme, *, is_embedding: bool = False) -> str:
    """The format that compressed-tensors keeps a scheme's weights in."""
    if scheme.is_float:
        return "float-quantized"
    return "int-quantized" if scheme.has_quantized_inputs or is_embedding else "pack-quantized"


def _group(targets: list[str], scheme: WeightScheme, layout: str) -> dict[str, Any]:
    kind = "float" if scheme.is_float else "int"
    weights = {
        "num_bits": scheme.bits,
        "type": kind,
        "symmetric": True,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
        "dynamic": False,
    }
    inputs = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": inputs if scheme.has_quantized_inputs else None,
        "output_activations": None,
        "format": layout,
    }
