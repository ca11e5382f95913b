"""Where numpy takes torch's place: its calls cost a third, between products that empty the caches."""

import torch
from torch import Tensor


def has_fast_array(tensor: Tensor) -> bool:
    """Whether a tensor's memory is an array that numpy computes on as torch does: float32 on CPU."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"
