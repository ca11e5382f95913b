"""Cutting a stage's matrices over its ranks (Megatron-LM, arXiv:1909.08053), on plain tensors.

`cut_stage` shrinks the meta parameters, adds the collectives, and says for each parameter which part of the
checkpoint's tensor this rank holds. The embedding and the head are cut along the vocabulary. Where ranks outnumber the
key-value heads, several hold the same one.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from serve_app.architectures.head_sizes import Width, head_sizes_of, num_rows
from serve_app.architectures.rank_shares import (
    even_range,
    kv_head_range,
    kv_heads_of_layer,
    kv_heads_on_rank,
    ranks_of_kv_head,
)
from serve_app.architectures.record import HEAD_NORM, SHARED_NORM, TensorCut
from serve_app.models.cut_stage import CutStage
from serve_app.models.transformers_model import replace_module
from serve_app.parallel.communicator import Communicator
from serve_app.parallel.shared_norm import SharedRMSNorm
from serve_app.parallel.summed_gradients import summed_output

Range = tuple[int, int]
OutputHook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]

_SUMMED = ("rowwise", "moe_tp_experts")
_BY_COLUMNS = ("colwise", HEAD_NORM, SHARED_NORM)
_NUM_KV_HEADS = "num_key_value_heads"  # as modules and configs of transformers call it


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


def kv_range(size: int, num_kv_heads: int, rank: int, num_ranks: int) -> Range:
    """The rank's part of `size`, to which each key-value head gives as much: that of its own heads."""
    first, end = kv_head_range(num_kv_heads, rank, num_ranks)
    return first * size // num_kv_heads, end * size // num_kv_heads


def packed_ranges(sizes: Sequence[int], own: Sequence[Range]) -> tuple[Range, ...]:
    """Ranges within each of several matrices, in the one that they are packed in one after the other."""
    offsets = accumulate(sizes, initial=0)
    return tuple((offset + start, offset + end) for offset, (start, end) in zip(offsets, own, strict=False))


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
            num_kv_heads = _kv_heads_of(stage, cut, name, style)
            if style == SHARED_NORM:
                num_copies = 1 if num_kv_heads is None else ranks_of_kv_head(num_kv_heads, stage.shard.num_ranks)
                target = SharedRMSNorm(target, communicator, num_copies)
                replace_module(stage.base, name, target)
            for parameter_name, parameter in _parameters_of(target, name):
                if num_kv_heads is not None:
                    own = kv_range(parameter.shape[0], num_kv_heads, stage.shard.rank, stage.shard.num_ranks)
                    part: Part | None = Part(0, (own,))
                else:
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
    if style in _BY_COLUMNS:
        return Part(out_dim, (even_range(parameter.shape[out_dim], rank, num_ranks),))
    if style == "packed_colwise":
        if packed is None:  # what a gate and its values are computed from
            sizes: tuple[int, ...] = (parameter.shape[out_dim] // 2,) * 2
            return Part(out_dim, packed_ranges(sizes, [even_range(size, rank, num_ranks) for size in sizes]))
        return Part(out_dim, _ranges_of(stage, packed))
    if style == "rowwise":
        if is_bias:
            return Part(is_zero=rank != 0)
        return Part(in_dim, (even_range(parameter.shape[in_dim], rank, num_ranks),))
    return None  # replicated, or a module whose parameters have lines of their own


def _ranges_of(stage: CutStage, packed: tuple[Width, ...]) -> tuple[Range, ...]:
    """This rank's part of matrices packed in one."""
    rank, num_ranks, num_kv_heads = stage.shard.rank, stage.shard.num_ranks, stage.head_kinds[0].num_kv_heads
    sizes = [num_rows(width, stage.config) for width in packed]
    own = [
        kv_range(size, num_kv_heads, rank, num_ranks) if width == "kv_heads" else even_range(size, rank, num_ranks)
        for width, size in zip(packed, sizes, strict=True)
    ]
    return packed_ranges(sizes, own)


def _kv_heads_of(stage: CutStage, cut: TensorCut, name: str, style: str) -> int | None:
    """Key-value heads of the whole layer, of a module that has rows or numbers of theirs; None: of another."""
    if style not in _BY_COLUMNS or name.rpartition(".")[2] not in cut.kv_modules:
        return None
    if len(stage.head_kinds) == 1:
        return stage.head_kinds[0].num_kv_heads
    attention = stage.base_prefix + name.rpartition(".")[0]
    query, key = (stage.whole_state[f"{attention}.{one}.weight"][0] for one in ("q_proj", "k_proj"))
    return kv_heads_of_layer(stage.head_kinds[0], query, key)


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
                whole = getattr(module, attribute, None)
                if whole is not None:
                    held = kv_heads_on_rank(whole, num_ranks) if attribute == _NUM_KV_HEADS else whole // num_ranks
                    setattr(module, attribute, held)
        if cut.divided_config is not None:
            module = layer.get_submodule(cut.divided_config)
            module.config = _divided_config(stage.config, num_ranks)


def _divided_config(config: PreTrainedConfig, num_ranks: int) -> PreTrainedConfig:
    divided, heads = copy.copy(config), head_sizes_of(config)
    divided.head_dim = heads.head_dim
    divided.num_attention_heads = heads.num_heads // num_ranks
    divided.num_key_value_heads = kv_heads_on_rank(heads.num_kv_heads, num_ranks)
    return divided
