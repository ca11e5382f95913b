"""Cutting a stage's matrices over its ranks (Megatron-LM, arXiv:1909.08053), on plain tensors.

`cut_stage` shrinks the meta parameters, adds the collectives, and says for each parameter which part of the
checkpoint's tensor this rank holds. The embedding and the head are cut along the vocabulary.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from serve_app.architectures.head_sizes import Width, head_sizes_of, num_rows
from serve_app.architectures.record import SHARED_NORM, TensorCut
from serve_app.models.cut_stage import CutStage
from serve_app.models.transformers_model import replace_module
from serve_app.parallel.communicator import Communicator
from serve_app.parallel.shared_norm import SharedRMSNorm
from serve_app.parallel.summed_gradients import summed_output

Range = tuple[int, int]
OutputHook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]

_SUMMED = ("rowwise", "moe_tp_experts")


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank holds of a tensor: the ranges along `dim`, joined; all of it when dim is None."""

    dim: int | None = None
    ranges: tuple[Range, ...] = ()
    is_zero: bool = False  # a bias that rank 0 alone adds

    @property
    def num_held(self) -> int:
        """Length along `dim`."""
        return sum(end - start for start, end in self.ranges)


def cut_stage(stage: CutStage, communicator: Communicator) -> dict[str, Part]:
    """Shrink the parameters of a stage to this rank's parts, by name; those not named are held whole."""
    if stage.shard.num_ranks == 1:
        return {}
    cut = stage.architecture.tensor_cut
    assert cut is not None, "settings are refused that a family cannot be cut by"
    parts = _cut_layers(stage, cut, communicator)
    parts |= _cut_vocabulary(stage, communicator)
    for name, part in parts.items():
        _shrink(stage.model, name, part)
    _shrink_attributes(stage, cut)
    return parts


def even_range(size: int, rank: int, num_ranks: int) -> Range:
    """The rank's share of `size`; shares differ by one where it does not divide."""
    return rank * size // num_ranks, (rank + 1) * size // num_ranks


def packed_ranges(sizes: tuple[int, ...], rank: int, num_ranks: int) -> tuple[Range, ...]:
    """The rank's share of each of several matrices that are packed one after the other."""
    ranges = []
    offset = 0
    for size in sizes:
        start, end = even_range(size, rank, num_ranks)
        ranges.append((offset + start, offset + end))
        offset += size
    return tuple(ranges)


def _cut_layers(stage: CutStage, cut: TensorCut, communicator: Communicator) -> dict[str, Part]:
    plan: Mapping[str, str] = cut.plan if cut.plan is not None else stage.config.base_model_tp_plan
    parts: dict[str, Part] = {}
    for index in range(stage.shard.first_layer, stage.shard.end_layer):
        for pattern, style in plan.items():
            name = pattern.replace("*", str(index))
            target = _find(stage.base, name)
            if target is None:
                continue  # a layer of another kind
            if isinstance(target, nn.Module) and style in _SUMMED:
                target.register_forward_hook(_sum_output(communicator))
            if style == SHARED_NORM:
                target = SharedRMSNorm(target, communicator)
                replace_module(stage.base, name, target)
            for parameter_name, parameter in _parameters_of(target, name):
                part = _part_of(stage, cut.packed.get(pattern), style, target, parameter_name, parameter)
                if part is not None:
                    parts[stage.base_prefix + parameter_name] = part
    return parts


def _find(base: nn.Module, name: str) -> nn.Module | nn.Parameter | None:
    try:
        return base.get_submodule(name)
    except AttributeError:
        pass
    try:
        return base.get_parameter(name)
    except AttributeError:
        return None


def _parameters_of(target: nn.Module | nn.Parameter, name: str) -> list[tuple[str, nn.Parameter]]:
    if isinstance(target, nn.Parameter):
        return [(name, target)]
    return [(f"{name}.{leaf}", parameter) for leaf, parameter in target.named_parameters(recurse=False)]


def _part_of(
    stage: CutStage,
    packed: tuple[Width, ...] | None,
    style: str,
    target: nn.Module | nn.Parameter,
    name: str,
    parameter: nn.Parameter,
) -> Part | None:
    """The part of one parameter under a style, or None where it is held whole."""
    rank, num_ranks = stage.shard.rank, stage.shard.num_ranks
    is_bias = isinstance(target, nn.Module) and name.endswith(".bias")
    # Linear weights are [out, in], Conv1D weights [in, out], experts' [experts, out, in].
    out_dim = 0 if is_bias else max(0, parameter.dim() - (1 if type(target).__name__ == "Conv1D" else 2))
    in_dim = parameter.dim() - (2 if type(target).__name__ == "Conv1D" else 1)
    if style == SHARED_NORM:
        return Part(0, (even_range(parameter.shape[0], rank, num_ranks),))
    if style == "colwise":
        return Part(out_dim, (even_range(parameter.shape[out_dim], rank, num_ranks),))
    if style == "packed_colwise":
        if packed is None:  # what a gate and its values are computed from
            sizes: tuple[int, ...] = (parameter.shape[out_dim] // 2,) * 2
        else:
            sizes = tuple(num_rows(width, stage.config) for width in packed)
        return Part(out_dim, packed_ranges(sizes, rank, num_ranks))
    if style == "rowwise":
        if is_bias:
            return Part(is_zero=rank != 0)
        return Part(in_dim, (even_range(parameter.shape[in_dim], rank, num_ranks),))
    return None  # replicated, or a module whose parameters have lines of their own


def _cut_vocabulary(stage: CutStage, communicator: Communicator) -> dict[str, Part]:
    """Cut embedding and head along the vocabulary: each rank looks up, or predicts, its own tokens."""
    num_tokens = stage.config.vocab_size
    part = Part(0, (even_range(num_tokens, stage.shard.rank, stage.shard.num_ranks),))
    parts: dict[str, Part] = {}
    if stage.shard.is_first:
        name = stage.architecture.parts.embedding
        parts[f"{stage.base_prefix}{name}.weight"] = part
        _cut_embedding(stage.base.get_submodule(name), part.ranges[0], communicator)
    if stage.shard.is_last and stage.head is not None:
        parts[f"{stage.head}.weight"] = part
        head = stage.model.get_submodule(stage.head)
        if getattr(head, "bias", None) is not None:
            parts[f"{stage.head}.bias"] = part
        head.register_forward_hook(_gather_logits(communicator, num_tokens, stage.shard.num_ranks))
    return parts


def _cut_embedding(embedding: nn.Module, own: Range, communicator: Communicator) -> None:
    start, end = own
    outside: list[Tensor] = []

    def to_local(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids = args[0]
        outside.append((ids < start) | (ids >= end))
        return ((ids - start).clamp(0, max(end - start - 1, 0)),)

    def sum_up(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return communicator.all_reduce(output.masked_fill(outside.pop()[..., None], 0))

    assert isinstance(embedding, nn.Embedding)
    embedding.padding_idx = None
    embedding.register_forward_pre_hook(to_local)
    embedding.register_forward_hook(sum_up)


def _sum_output(communicator: Communicator) -> OutputHook:
    def hook(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if output.requires_grad:
            return summed_output(output, communicator)
        return communicator.all_reduce(output.contiguous())

    return hook


def _gather_logits(communicator: Communicator, num_tokens: int, num_ranks: int) -> OutputHook:
    bounds = [even_range(num_tokens, rank, num_ranks) for rank in range(num_ranks)]
    sizes = [end - start for start, end in bounds]

    def hook(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        padded = nn.functional.pad(output, (0, max(sizes) - output.shape[-1]))  # [1, N, largest share]
        gathered = communicator.all_gather(padded.contiguous())
        own = [logits[..., :size] for logits, size in zip(gathered, sizes, strict=True)]
        return torch.cat(own, dim=-1)  # [1, N, V]

    return hook


def _shrink(model: nn.Module, name: str, part: Part) -> None:
    """Give a meta parameter the shape of this rank's part."""
    if part.dim is None:
        return
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    old = getattr(module, leaf)
    shape = list(old.shape)
    shape[part.dim] = part.num_held
    if old.shape[part.dim] != part.num_held:
        setattr(module, leaf, nn.Parameter(torch.empty(shape, dtype=old.dtype, device="meta"), requires_grad=False))
    if leaf == "weight" and isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif leaf == "weight" and type(module).__name__ == "Conv1D":
        module.nx, module.nf = shape
    elif leaf == "weight" and isinstance(module, nn.Embedding):
        module.num_embeddings = shape[0]


def _shrink_attributes(stage: CutStage, cut: TensorCut) -> None:
    """Divide the head counts and widths that forward methods read."""
    num_ranks = stage.shard.num_ranks
    for layer in stage.own_layers:
        for module_name, attributes in cut.divided.items():
            try:
                module = layer.get_submodule(module_name)
            except AttributeError:
                continue  # a layer of another kind
            for attribute in attributes:
                if hasattr(module, attribute):
                    setattr(module, attribute, getattr(module, attribute) // num_ranks)
        if cut.divided_config is not None:
            module = layer.get_submodule(cut.divided_config)
            module.config = _divided_config(stage.config, num_ranks)


def _divided_config(config: PreTrainedConfig, num_ranks: int) -> PreTrainedConfig:
    divided, heads = copy.copy(config), head_sizes_of(config)
    divided.head_dim = heads.head_dim
    divided.num_attention_heads = heads.num_heads // num_ranks
    divided.num_key_value_heads = heads.num_kv_heads // num_ranks
    return divided
