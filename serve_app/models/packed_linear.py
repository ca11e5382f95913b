"""What the linear layers over quantized weights share, whatever their kernel."""

from abc import abstractmethod

from torch import Tensor, nn


class QuantizedLinear(nn.Module):
    """Sizes, the bias (a loader may set it later), and what the weight takes in memory."""

    def __init__(self, num_inputs: int, num_outputs: int, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features = num_inputs
        self.out_features = num_outputs
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.num_bytes = 0  # of the weight; the bias is a parameter


class KernelLinear(QuantizedLinear):
    """A layer that is one call of a kernel, whose shape and dtype need not be the inputs'."""

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [..., K] -> [..., N], of the inputs' dtype."""
        if inputs.numel() == 0:  # a head in a step that draws nothing: kernels for CUDA cannot be launched for no rows
            return inputs.new_zeros(*inputs.shape[:-1], self.out_features)
        outputs = self.multiply(inputs)
        return outputs.view(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    @abstractmethod
    def multiply(self, inputs: Tensor) -> Tensor:
        """inputs [..., K] -> [M, N] of any float dtype, the bias added."""
