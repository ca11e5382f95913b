"""Which attention kernels of torch serve on CUDA, and what they do not take."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# Not cuDNN: it builds and keeps a graph for each length of keys, and decoding has a new one in each step.
SDPA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Within it, torch's attention chooses among the kernels that we serve with."""
    return sdpa_kernel(SDPA_BACKENDS) if device.type == "cuda" else nullcontext()


def must_repeat_heads(query: Tensor, num_heads: int, num_kv_heads: int, *, has_mask: bool) -> bool:
    """Whether key-value heads must be repeated for their query heads.

    On CUDA no fused kernel takes a mask, or float32, beside heads that share theirs; the one that is left keeps all
    scores in float32, 8 GiB for 10,000 tokens of an 8B model (torch 2.11 to 2.13).
    """
    return query.is_cuda and num_heads != num_kv_heads and (has_mask or query.dtype == torch.float32)
