"""What a tensor of a checkpoint is, by its name: patterns made of the names that the records give."""

import re
from collections.abc import Iterable
from functools import lru_cache

from serve_app.architectures.lookup import ARCHITECTURES

_MAX_REMEMBERED = 1 << 17  # names: planning asks of each for many splits, and a search takes microseconds
# Parts of a multimodal checkpoint that are never loaded, heads of pre-training, indexers of sparse attention (which
# sees all, up to the length that is served), and buffers that old files carry along.
_UNUSED = re.compile(
    r"(?:^|\.)(?:vision_tower|multi_modal_projector|vision_model)\.|\.indexer\.|\.attn\.(?:bias|masked_bias)$|\.rotary_emb\.inv_freq$"
    r"|(?:^|\.)embeddings\.position_ids$|(?:^|\.)cls\.(?:predictions|seq_relationship)\."
)


def _any_of(names: Iterable[str]) -> str:
    """A group that matches the last part of each name."""
    return f"(?:{'|'.join(sorted({re.escape(name.rpartition('.')[2]) for name in names}))})"


_PARTS = [one.parts for one in ARCHITECTURES.values()]
_CUTS = [one.tensor_cut for one in ARCHITECTURES.values() if one.tensor_cut is not None]
_LAYER = re.compile(rf"(?:^|\.){_any_of(parts.layers for parts in _PARTS)}\.([0-9]{{1,6}})\.")
_FIRST_STAGE = re.compile(rf"(?:^|\.){_any_of(name for parts in _PARTS for name in parts.before_layers)}\.")
_EMBEDDING = re.compile(rf"(?:^|\.){_any_of(parts.embedding for parts in _PARTS)}\.weight$")
_HEADS = [name for parts in _PARTS for name in (parts.head, parts.stored_head) if name is not None]
_HEAD = re.compile(rf"(?:^|\.){_any_of(_HEADS)}\.")
_ROUTER = re.compile(rf"\.(?:{'|'.join(re.escape(name) for cut in _CUTS for name in cut.routers)})\.weight$")


@lru_cache(_MAX_REMEMBERED)
def layer_of(tensor_name: str) -> int | None:
    """Index of the layer a tensor belongs to; None: embeddings, norm, head, or unused."""
    match = None if is_unused(tensor_name) else _LAYER.search(tensor_name)
    return int(match[1]) if match else None


@lru_cache(_MAX_REMEMBERED)
def is_unused(tensor_name: str) -> bool:
    """Whether no model that is served takes it."""
    return _UNUSED.search(tensor_name) is not None


@lru_cache(_MAX_REMEMBERED)
def is_before_layers(tensor_name: str) -> bool:
    """Whether it belongs to the first stage, outside any layer."""
    return _FIRST_STAGE.search(tensor_name) is not None


@lru_cache(_MAX_REMEMBERED)
def is_embedding(tensor_name: str) -> bool:
    """Whether it is the vocabulary's embedding."""
    return _EMBEDDING.search(tensor_name) is not None


@lru_cache(_MAX_REMEMBERED)
def is_head(tensor_name: str) -> bool:
    """Whether it belongs to the head over the vocabulary."""
    return _HEAD.search(tensor_name) is not None


@lru_cache(_MAX_REMEMBERED)
def is_router(tensor_name: str) -> bool:
    """Whether it chooses among experts: never cut, never quantized."""
    return _ROUTER.search(tensor_name) is not None
