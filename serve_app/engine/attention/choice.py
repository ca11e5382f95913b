"""Which backend decodes a stage, and why not a faster one."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from serve_app.architectures.head_sizes import HeadSizes
from serve_app.engine.attention.backend import DecodeBackend
from serve_app.engine.attention.compiled import CompiledBackend
from serve_app.engine.attention.padded import PaddedBackend
from serve_app.errors import ConfigError
from serve_app.models.compiled.library import CompiledKernels
from serve_app.models.torch_dtypes import DTYPE_NAMES
from serve_app.models.transformers_model import TransformersStage
from serve_app.planning.attention_problem import attention_problem
from serve_app.types.shards import EngineLimits

_FASTEST_FIRST = ("triton", "varlen", "padded")  # of those that decode together
_FIRST_TORCH_WITH_VARLEN = (2, 13)  # before it, pages and splits do not go together


@dataclass(frozen=True, slots=True)
class DecodeSizes:
    """What backends are made for."""

    block_size: int  # tokens of a KV block
    max_model_len: int  # tokens of a sequence
    max_num_seqs: int

    @classmethod
    def within(cls, limits: EngineLimits) -> "DecodeSizes":
        """Those of an engine."""
        return cls(limits.block_size, limits.max_model_len, limits.max_num_seqs)


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """A backend, by the name that `engine.attention` has for it."""

    name: str
    backend: DecodeBackend | None  # None: each sequence is attended by itself
    reasons: tuple[str, ...] = ()  # why faster ones were not taken

    def __str__(self) -> str:
        return self.name if not self.reasons else f"{self.name} ({'; '.join(self.reasons)})"


def choose_attention(
    name: str,
    head_kinds: Sequence[HeadSizes],
    sizes: DecodeSizes,
    dtype: torch.dtype,
    device: torch.device,
    kernels: CompiledKernels | None = None,
) -> AttentionChoice:
    """The backend that `engine.attention` names; auto: the fastest there is on CUDA, reference on CPU.

    head_kinds: of each kind of layers; dtype: of the KV cache. kernels: of steps on CPU, which auto takes there. Raises
    ConfigError where the backend that is named cannot be had.
    """
    if name == "auto" and kernels is not None and kernels.serve(dtype):
        return AttentionChoice("compiled", CompiledBackend(sizes.block_size, kernels))
    if name == "reference" or (name == "auto" and device.type == "cpu"):
        return AttentionChoice("reference", None)
    if name != "auto":
        problem = _why_not(name, head_kinds, sizes, dtype, device)
        if problem is not None:
            raise ConfigError(problem)
        return AttentionChoice(name, _make(name, sizes, device))
    reasons: list[str] = []
    for candidate in _FASTEST_FIRST:
        problem = _why_not(candidate, head_kinds, sizes, dtype, device)
        if problem is None:
            return AttentionChoice(candidate, _make(candidate, sizes, device), tuple(reasons))
        reasons.append(problem)
    raise AssertionError("padded serves all")


def attention_of(
    name: str,
    stage: TransformersStage,
    sizes: DecodeSizes,
    device: torch.device,
    kernels: CompiledKernels | None = None,
) -> AttentionChoice:
    """The backend of a stage; see choose_attention."""
    return choose_attention(name, stage.head_kinds, sizes, stage.dtype, device, kernels)


def _why_not(
    name: str, head_kinds: Sequence[HeadSizes], sizes: DecodeSizes, dtype: torch.dtype, device: torch.device
) -> str | None:
    problem = attention_problem(name, device.type, DTYPE_NAMES[dtype], head_kinds, sizes.block_size)
    return problem or missing_of(name, torch.__version__, has_triton=find_spec("triton") is not None)


def missing_of(name: str, torch_version: str, *, has_triton: bool) -> str | None:
    """What an installation lacks for a backend, and what to do."""
    if name == "triton" and not has_triton:
        return "engine.attention=triton needs the package triton, which is not installed; install it, or use padded"
    if name == "varlen" and tuple(map(int, torch_version.split(".")[:2])) < _FIRST_TORCH_WITH_VARLEN:
        return f"engine.attention=varlen needs torch 2.13, and this is {torch_version}; update it, or use triton"
    return None


def _make(name: str, sizes: DecodeSizes, device: torch.device) -> DecodeBackend:
    """Imported when it is chosen: each needs what others do not."""
    if name == "triton":
        from serve_app.engine.attention.triton_backend import TritonBackend

        return TritonBackend(sizes.block_size, sizes.max_model_len)
    if name == "varlen":
        from serve_app.engine.attention.varlen import VarlenBackend

        return VarlenBackend(sizes.block_size, sizes.max_num_seqs, device)
    return PaddedBackend(sizes.block_size)
