"""RMSNorm in one call where transformers makes six, of the same arithmetic: the numbers are equal to the bit."""

import torch
from torch import Tensor, nn

# Whose RMSNorm multiplies by its weight, after a cast back to the inputs' dtype: one more rounding in half precision,
# so that there only transformers' own gives transformers' numbers.
FUSED_CLASSES = ("LlamaRMSNorm", "MistralRMSNorm", "MixtralRMSNorm", "Phi3RMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


class FusedRMSNorm(nn.Module):
    """Root mean square normalization (arXiv:1910.07467) over the last dimension."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self._epsilon = epsilon

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [..., D] float32 -> the same shape."""
        return torch.rms_norm(inputs, self.weight.shape, self.weight, self._epsilon)


def fuse_norms(model: nn.Module) -> None:
    """Put the fused ones in the place of those that a float32 model has."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            weight, epsilon = getattr(child, "weight", None), getattr(child, "variance_epsilon", None)
            if type(child).__name__ not in FUSED_CLASSES or not isinstance(weight, nn.Parameter):
                continue
            if weight.dtype == torch.float32 and isinstance(epsilon, float):
                setattr(module, name, FusedRMSNorm(weight, epsilon))
