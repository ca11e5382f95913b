"""How tensor ranks share each tensor of a checkpoint, by its name and shape."""

from collections.abc import Sequence
from typing import Literal

from serve_app.architectures.head_sizes import Width
from serve_app.architectures.record import HEAD_NORM, SHARED_NORM, TensorCut
from serve_app.architectures.tensor_names import is_embedding, is_head, is_router, layer_of

Share = Literal["whole", "even", "kv", "packed_kv", "tokens"]

EXPERTS = ".experts."
_SUMMED = ("o_proj", "down_proj")  # that transformers' own plans cut by inputs


class LayerCut:
    """The same as parallel/tensor_parallel.py cuts modules, told by names in files. cut: None: layers are not cut."""

    def __init__(self, cut: TensorCut | None) -> None:
        self._cut = cut or TensorCut(plan={})
        plan = self._cut.plan
        self._styles: dict[str, tuple[str, str]] | None = None  # None: all matrices of a layer are cut
        if plan is not None:
            styles = {pattern.partition("*.")[2]: (pattern, style) for pattern, style in plan.items()}
            self._styles = dict(sorted(styles.items(), key=lambda one: -len(one[0])))

    def share_of(self, name: str, shape: Sequence[int]) -> Share:
        """What each rank holds of a tensor."""
        if layer_of(name) is None:
            return "tokens" if is_embedding(name) or is_head(name) else "whole"
        if is_router(name) or (self._cut.has_whole_attention and "attn." in name):
            return "whole"
        if EXPERTS in name:  # a checkpoint has a matrix for each expert, the model one for all
            is_cut = self._styles is None or any(EXPERTS in f".{one}." for one in self._styles)
            return "even" if is_cut and len(shape) > 1 else "whole"
        pattern, style = self._style_of(name, shape)
        if style == "rowwise":
            is_vector = len(shape) < 2 or 1 in shape  # a bias, or scales of whole rows
            return "whole" if is_vector else "even"
        if style == "packed_colwise":
            return "packed_kv" if "kv_heads" in self._cut.packed.get(pattern, ()) else "even"
        if style not in ("colwise", HEAD_NORM, SHARED_NORM):
            return "whole"
        return "kv" if pattern.rpartition(".")[2] in self._cut.kv_modules else "even"

    def is_by_inputs(self, name: str) -> bool:
        """Whether ranks share the inputs of a matrix, and each has all its outputs."""
        return layer_of(name) is not None and self._style_of(name, (2, 2))[1] == "rowwise"

    def widths_of(self, name: str) -> tuple[Width, ...]:
        """Of the matrices packed in one."""
        return self._cut.packed[self._style_of(name, (2, 2))[0]]

    def _style_of(self, name: str, shape: Sequence[int]) -> tuple[str, str]:
        """The module as its plan calls it, and how it is cut; "": it is held whole."""
        module = name.rpartition(".")[0]
        if self._styles is None:
            if module.rpartition(".")[2] in _SUMMED:
                return module, "rowwise"
            return module, "colwise" if len(shape) > 1 or name.endswith(".bias") else ""
        for one, (pattern, style) in self._styles.items():
            if name.endswith(f".{one}") or module.endswith(f".{one}"):
                return pattern, style
        return "", ""
