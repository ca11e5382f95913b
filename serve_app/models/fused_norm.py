"""RMSNorm in fewer calls than the six that transformers makes, of the same arithmetic.

On CPU by numpy, whose calls cost a third of torch's between products that empty the caches. A row's sum is taken along
the row, so its bits do not depend on how many rows there are; they can differ from torch's in the last.
"""

from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn

from serve_app.architectures.record import FusedClasses
from serve_app.models.compiled.library import CompiledKernels
from serve_app.models.fast_arrays import has_fast_array


class FusedRMSNorm(nn.Module):
    """Root mean square normalization (arXiv:1910.07467) over the last dimension."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.variance_epsilon = epsilon
        self._width = weight.shape[0]

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [..., D] float32 -> the same shape."""
        weight = self.weight
        if not has_fast_array(weight):
            return torch.rms_norm(inputs, weight.shape, weight, self.variance_epsilon)
        rows = inputs.numpy()
        sums = np.vecdot(rows, rows)  # [...]
        if sums.size == 1:
            scaled = rows * (1.0 / sqrt(float(sums.item()) / self._width + self.variance_epsilon))
            scaled *= weight.numpy()
            return torch.from_numpy(scaled)
        scales = 1.0 / np.sqrt(sums.astype(np.float64) / self._width + self.variance_epsilon)
        return torch.from_numpy(scales.astype(np.float32))[..., None].mul(inputs).mul_(weight)


class CompiledRMSNorm(nn.Module):
    """The same in one call, with the roundings of transformers' in bfloat16. No row depends on others."""

    def __init__(self, weight: nn.Parameter, epsilon: float, kernels: CompiledKernels) -> None:
        super().__init__()
        self.weight = weight
        self.variance_epsilon = epsilon
        self._kernels = kernels

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [..., D] of the weight's dtype -> the same shape."""
        return self._kernels.norm(inputs, self.weight, self.variance_epsilon)


def fuse_norms(model: nn.Module, classes: FusedClasses) -> None:
    """Replace the norms of a float32 model by fused ones.

    In half precision transformers' own stay: their cast beside the weight is one more rounding.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            weight, epsilon = getattr(child, "weight", None), getattr(child, "variance_epsilon", None)
            if type(child).__name__ != classes.norm or not isinstance(weight, nn.Parameter):
                continue
            if weight.dtype == torch.float32 and isinstance(epsilon, float):
                setattr(module, name, FusedRMSNorm(weight, epsilon))


def compile_norms(model: nn.Module, classes: FusedClasses, kernels: CompiledKernels) -> None:
    """Replace the norms of a model on CPU, fused ones and transformers' own, by compiled ones."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            weight, epsilon = getattr(child, "weight", None), getattr(child, "variance_epsilon", None)
            is_norm = isinstance(child, FusedRMSNorm) or type(child).__name__ == classes.norm
            if not is_norm or not isinstance(weight, nn.Parameter) or not isinstance(epsilon, float):
                continue
            if kernels.serve(weight.dtype):
                setattr(module, name, CompiledRMSNorm(weight, epsilon, kernels))
