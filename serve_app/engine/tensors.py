"""Tensors between torch and the bytes that cross processes."""

import torch
from torch import Tensor

from serve_app.parallel.communicator import DTYPE_NAMES, DTYPES_BY_NAME
from serve_app.types.tensors import TensorData


def to_tensor(data: TensorData, device: torch.device) -> Tensor:
    """The tensor of some bytes, of the shape and dtype that they come with."""
    if not data.data:
        return torch.empty(data.shape, dtype=DTYPES_BY_NAME[data.dtype], device=device)
    flat = torch.frombuffer(
        bytearray(data.data), dtype=DTYPES_BY_NAME[data.dtype]
    )  # a copy: bytes cannot be written to
    return flat.reshape(data.shape).to(device, non_blocking=True)


def to_data(tensor: Tensor) -> TensorData:
    """The bytes of a tensor of any shape."""
    tensor = tensor.detach().cpu().contiguous()
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return TensorData(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), raw)
