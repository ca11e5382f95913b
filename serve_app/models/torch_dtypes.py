"""torch's dtypes by name, and by safetensors' code."""

import torch

from serve_app.types.dtypes import DTYPES, SERVED_DTYPES, TENSOR_DTYPES

FLOAT8 = torch.float8_e4m3fn
_FLOAT8S = ("float8_e4m3fn", "float8_e8m0fnu")  # of quantized weights, and of their scales
TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in (*TENSOR_DTYPES, *_FLOAT8S)}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
DTYPES_OF_FILES = {DTYPES[name].safetensors: dtype for name, dtype in TORCH_DTYPES.items()}  # that can be read
SERVED_TORCH_DTYPES = {name: TORCH_DTYPES[name] for name in SERVED_DTYPES}
