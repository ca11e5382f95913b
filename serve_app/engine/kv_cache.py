"""The paged KV cache of one shard."""

import math
import mmap
from itertools import count

import torch
from torch import Tensor

from serve_app.architectures.rank_shares import heads_of_rank, widest_on_rank
from serve_app.engine.process_memory import ask_for_huge_pages
from serve_app.models.fast_arrays import has_fast_array
from serve_app.models.transformers_model import TransformersStage
from serve_app.types.shards import KvShape

_HUGE_FROM = 8 << 20  # bytes of one layer's keys: in smaller ones, what huge pages hold unused would be much of them
_memories = count()


class KvCache:
    """Keys and values of a stage's layers for its rank's heads: num_blocks pages of block_size tokens."""

    def __init__(self, stage: TransformersStage, num_blocks: int, block_size: int, device: torch.device) -> None:
        kv = kv_shape_of(stage)
        self.block_size = block_size
        self._may_differ = stage.architecture.other_heads is not None  # layers in the shapes of their keys and values
        shape = (num_blocks * block_size, kv.num_heads)
        self.memory = next(_memories)  # a number of its own as long as its tensors stay where they are
        self.keys: list[Tensor] = []  # one [num_slots, K, Dh] for each own layer
        self.values: list[Tensor] = []
        for _ in stage.own_layers:
            self.keys.append(_zeros((*shape, kv.head_dim), stage.dtype, device))
            self.values.append(_zeros((*shape, kv.value_dim or kv.head_dim), stage.dtype, device))
        # The same memory as attention wants it: [1, K, num_slots, Dh].
        self._by_head = [
            tuple(tensor.transpose(0, 1)[None] for tensor in pair) for pair in zip(self.keys, self.values, strict=True)
        ]
        pairs = zip(self.keys, self.values, strict=True)
        self._arrays = [(keys.numpy(), values.numpy()) for keys, values in pairs if has_fast_array(keys)]

    @property
    def num_bytes(self) -> int:
        """Of all layers."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store the step's keys and values [T, K, Dh] in their slots [T] int64."""
        if self._may_differ and key.shape[1:] != self.keys[layer].shape[1:]:
            self._reshape(layer, key, value)
        if self._arrays and len(slots) == 1:  # by calls that cost a third
            keys, values = self._arrays[layer]
            slot = int(slots.item())
            keys[slot], values[slot] = key.numpy()[0], value.numpy()[0]
            return
        self.keys[layer].index_copy_(0, slots, key)
        self.values[layer].index_copy_(0, slots, value)

    def _reshape(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Give a layer's memory, which has room for the widest, the shape of its own keys and values [T, K, Dh]."""
        num_slots = len(self.keys[layer])
        self.memory = next(_memories)
        shapes = (num_slots, *key.shape[1:]), (num_slots, *value.shape[1:])
        assert sum(map(math.prod, shapes)) <= self.keys[layer].numel() + self.values[layer].numel()
        self.keys[layer] = _zeros(shapes[0], key.dtype, key.device)
        self.values[layer] = _zeros(shapes[1], value.dtype, value.device)
        self._by_head[layer] = tuple(one.transpose(0, 1)[None] for one in (self.keys[layer], self.values[layer]))
        if self._arrays:
            self._arrays[layer] = (self.keys[layer].numpy(), self.values[layer].numpy())

    def copy(self, old: Tensor, new: Tensor) -> None:
        """Contents of blocks [N] int64 into blocks [N]: all are read before any is written."""
        for tensor in (*self.keys, *self.values):
            pages = tensor.view(len(tensor) // self.block_size, -1)
            pages.index_copy_(0, new, pages.index_select(0, old))

    def read_run(self, layer: int, first_slot: int, num_slots: int) -> tuple[Tensor, Tensor]:
        """Keys and values [1, K, num_slots, Dh] of slots that lie one after the other, without a copy."""
        keys, values = self._by_head[layer]
        return keys.narrow(2, first_slot, num_slots), values.narrow(2, first_slot, num_slots)

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Whole blocks [N] int64, in that order -> keys and values [N * block_size, K, Dh], copied."""
        return _read(self.keys[layer], blocks, self.block_size), _read(self.values[layer], blocks, self.block_size)


def kv_shape_of(stage: TransformersStage) -> KvShape:
    """What one token of this shard's cache is made of."""
    cut = stage.architecture.tensor_cut
    num_ranks = 1 if cut is None or cut.has_whole_attention else stage.shard.num_ranks
    heads = heads_of_rank(widest_on_rank(stage.head_kinds, num_ranks), num_ranks)
    return KvShape(len(stage.own_layers), heads.num_kv_heads, heads.head_dim, stage.dtype.itemsize, heads.value_dim)


def kv_block_bytes(stage: TransformersStage, block_size: int) -> int:
    """Bytes of one block over all layers of this shard."""
    return kv_shape_of(stage).block_bytes(block_size)


def _read(cache: Tensor, blocks: Tensor, block_size: int) -> Tensor:
    num_slots, num_heads, head_dim = cache.shape
    pages = cache.view(num_slots // block_size, block_size * num_heads * head_dim)
    return pages.index_select(0, blocks).view(-1, num_heads, head_dim)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on CPU the system makes each page when it is first written, so that a cache takes what was used of it.

    Attention looks up fewer pages where they are huge: it takes 0.87 of the time in long contexts.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or num_bytes == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(pages, dtype=dtype)  # which holds them
    if num_bytes >= _HUGE_FROM:
        ask_for_huge_pages(tensor)
    return tensor.view(shape)
