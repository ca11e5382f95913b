"""What the linear layers over quantized weights share, whatever their kernel."""

from torch import Tensor, nn


class QuantizedLinear(nn.Module):
    """What all kernels share: sizes, the bias (a loader may set it later), and the shape of what goes in and out."""

    def __init__(self, num_inputs: int, num_outputs: int, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features = num_inputs
        self.out_features = num_outputs
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.num_bytes = 0  # of the weight; the bias is a parameter

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [..., K] -> [..., N], of the inputs' dtype."""
        outputs = self.multiply(inputs)
        return outputs.view(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    def multiply(self, inputs: Tensor) -> Tensor:
        """inputs [..., K] -> [M, N] of any float dtype, the bias added."""
        raise NotImplementedError
