"""Tensors between torch and the bytes that cross processes."""

import torch
from torch import Tensor

from serve_app.models.torch_dtypes import DTYPE_NAMES, TORCH_DTYPES
from serve_app.types.tensors import TensorData


def to_tensor(data: TensorData, device: torch.device) -> Tensor:
    """The tensor of some bytes, of the shape and dtype that they come with."""
    dtype = TORCH_DTYPES[data.dtype]
    if not data.data:
        return torch.empty(data.shape, dtype=dtype, device=device)
    flat = torch.frombuffer(bytearray(data.data), dtype=dtype)  # a copy: bytes cannot be written to
    return flat.reshape(data.shape).to(device, non_blocking=True)


def to_data(tensor: Tensor) -> TensorData:
    """The bytes of a tensor of any shape."""
    tensor = tensor.detach().cpu().contiguous()
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return TensorData(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), raw)
