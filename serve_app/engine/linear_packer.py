"""Packing a stage's linear layers for the kernel that multiplies by them, while they are read."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from serve_app.freed_memory import give_back_freed_memory
from serve_app.models.compiled.library import CompiledKernels
from serve_app.models.cut_stage import CutStage
from serve_app.models.linear_kernels import keeps_weight, make_linears
from serve_app.models.quantization import take_hooks
from serve_app.models.transformers_model import replace_module


class LinearPacker:
    """Puts a kernel's layers in the places of plain ones; layers that read one tensor are joined.

    Each is packed once it is whole, so that no more than one product is held as it was read. A head that is tied to the
    embedding is packed beside it.
    """

    def __init__(self, stage: CutStage, kernel: str | None, compiled: CompiledKernels | None = None) -> None:
        """kernel: None: all layers stay as they are. compiled: kernels of steps, if any."""
        self._model = stage.model
        self._kernel = kernel
        self._compiled = compiled
        self._dtype: torch.dtype = next(stage.model.parameters()).dtype
        self._groups: dict[str, tuple[str, ...]] = {}  # by the name of each layer: those that read one tensor with it
        if kernel is not None:
            self._find_groups(stage)

    def is_wanted(self, parameter_name: str) -> bool:
        """Whether a parameter is to be packed, so that what it is read into will be freed."""
        group = self._groups.get(parameter_name.rpartition(".")[0], ())
        is_kept = len(group) == 1 and self._kernel is not None and keeps_weight(self._kernel)
        return bool(group) and not is_kept

    def filled(self, parameter_name: str) -> None:
        """Once a parameter is read."""
        group = self._groups.get(parameter_name.rpartition(".")[0])
        if group is None:
            return
        linears = [self._model.get_submodule(name) for name in group]
        is_whole = not any(parameter.is_meta for one in linears for parameter in one.parameters())
        if is_whole and all(self._can_pack(one) for one in linears):
            del linears
            self._pack(group)
            give_back_freed_memory()

    def finish(self) -> None:
        """Once all is read: layers whose neighbours are packed otherwise."""
        for name in [name for name in self._groups if self._can_pack(self._model.get_submodule(name))]:
            self._pack((name,))

    def _find_groups(self, stage: CutStage) -> None:
        for module_name, module in self._model.named_modules():
            if self._can_pack(module):
                self._groups.setdefault(module_name, (module_name,))
            for names in stage.architecture.same_input:
                if all(self._can_pack(getattr(module, name, None)) for name in names):
                    group = tuple(f"{module_name}.{name}" for name in names)
                    self._groups |= dict.fromkeys(group, group)

    def _can_pack(self, module: nn.Module | None) -> TypeGuard[nn.Linear]:
        """Whether it is nn.Linear itself, and no class that makes something else of its weight."""
        return (
            type(module) is nn.Linear and isinstance(module.weight, nn.Parameter) and module.weight.dtype == self._dtype
        )

    def _pack(self, names: tuple[str, ...]) -> None:
        assert self._kernel is not None, "there are no groups otherwise"
        linears = [one for name in names if self._can_pack(one := self._model.get_submodule(name))]
        weights: list[Tensor] = [one.weight.detach() for one in linears]
        biases: list[Tensor | None] = [one.bias for one in linears]
        embeddings = [one.weight for one in self._model.modules() if isinstance(one, nn.Embedding)]
        packed = make_linears(weights, biases, self._kernel, self._compiled)
        for name, old, new in zip(names, linears, packed, strict=True):
            if keeps_weight(self._kernel) and any(one is old.weight for one in embeddings):
                new.num_bytes = 0  # they are the embedding's
            take_hooks(new, old)
            replace_module(self._model, name, new.eval())
